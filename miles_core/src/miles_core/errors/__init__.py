"""Errors of miles: every one says what, whose, why, and what to do."""

from miles_core.errors.base import MilesError, PluginError, RunError, UsageError, UsageErrors

__all__ = ["MilesError", "PluginError", "RunError", "UsageError", "UsageErrors"]
