"""M301 to M349: data and checkpoints that the user gives."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

DATA: dict[str, Explanation] = {}
