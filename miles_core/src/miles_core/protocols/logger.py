"""A metric logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class MetricLogger(Protocol):
    """Made by ``create(config)`` in the driver, which is the only process that logs."""

    def start(self, run_dir: str, settings: Mapping[str, object]) -> None:
        """The run begins. ``settings`` is the resolved config without secrets."""
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics; their names carry their axis (``train/`` counts optimizer steps, all others rollouts)."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...
