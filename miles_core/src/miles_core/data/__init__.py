"""Prompts: reading, templating, order."""
