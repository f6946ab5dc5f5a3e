"""Loggers for miles. Importing this package imports nothing else."""
