"""Whether responses follow instructions that a program can check: IFEval's and IFBench's."""
