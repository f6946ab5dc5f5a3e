"""The metric loggers that ship with core."""
