"""What one rank says about training on a rollout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainReport:
    """Metrics are the same on all ranks that compute the loss, and empty elsewhere.

    Attributes:
        metrics_per_step: for each optimizer step, ``train/...``.
        rollout_metrics: over the whole rollout, ``rollout/...``.
        skipped: whether no optimizer step was made, because no sample of any rank carries a gradient.
        tokens: tokens of prompts and responses that went through optimizer steps, over all ranks, without padding.
        seconds: of this rank, by phase.
        reports: whether this is the rank whose report is logged.
    """

    metrics_per_step: list[dict[str, float]]
    rollout_metrics: dict[str, float]
    skipped: bool
    tokens: int
    seconds: dict[str, float]
    reports: bool = False


@dataclass
class Clock:
    """Seconds by phase; a phase may be entered again. ``watch`` makes a context that each phase runs in."""

    seconds: dict[str, float] = field(default_factory=dict)
    watch: Callable[[str], AbstractContextManager[object]] = nullcontext

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what runs inside."""
        started = time.perf_counter()
        with self.watch(phase):
            yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
