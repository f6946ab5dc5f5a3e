"""M401 to M459: runs that fail."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

RUN: dict[str, Explanation] = {}
