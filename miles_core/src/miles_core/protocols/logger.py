"""A metric logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class MetricLogger(Protocol):
    """Made by ``create(config)`` in the driver, which is the only process that logs."""

    def start(self, run_dir: str, settings: Mapping[str, object], first: Mapping[str, int]) -> None:
        """The run begins.

        Args:
            run_dir: the run folder. A resumed run may have one that it was in before.
            settings: the resolved config without secrets, by flag.
            first: of each axis (``train``, ``rollout``, ``eval``) the first step that will be logged. Whatever an earlier process
                of the run logged from there on is made again, and must not be there twice.
        """
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics; their names carry their axis (``train/`` counts optimizer steps, all others rollouts)."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...
