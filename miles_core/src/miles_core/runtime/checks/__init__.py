"""Checks of the resolved options, one topic a file. Each takes a :class:`Report`, adds what is wrong, and derives what follows."""

from miles_core.runtime.checks.report import Report

__all__ = ["Report"]
