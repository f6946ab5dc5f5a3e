"""M201 to M239: options and validation."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

OPTIONS: dict[str, Explanation] = {}
