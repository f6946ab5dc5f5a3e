"""The ``sglang`` engine of miles: SGLang servers as subprocesses, or anybody's, behind core's engine protocol."""
