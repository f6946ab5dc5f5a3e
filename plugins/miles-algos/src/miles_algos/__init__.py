"""Advantage estimators, losses, filters and recipes for miles. Importing this package imports nothing else."""
