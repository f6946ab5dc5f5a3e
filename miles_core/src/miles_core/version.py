"""The version of miles-core, read from its installed metadata."""

from __future__ import annotations

__version__ = "0.1.0"
