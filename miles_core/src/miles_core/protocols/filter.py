"""A filter of sample groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from miles_core.samples import SampleGroup


@dataclass(frozen=True)
class Decision:
    """Keep or drop; ``reason`` of a drop is counted as ``rollout/dynamic_filter/drop_<reason>``."""

    keep: bool
    reason: str = ""


class Filter(Protocol):
    """Made by ``create(config)`` in the rollout manager."""

    def __call__(self, group: SampleGroup) -> Decision:
        """Decide on one finished, scored group."""
        ...
