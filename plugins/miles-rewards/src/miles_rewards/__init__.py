"""Rewards for miles. Importing this package imports nothing else."""
