"""Filters of sample groups, one a file."""
