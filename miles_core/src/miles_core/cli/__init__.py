"""The ``miles`` command."""
