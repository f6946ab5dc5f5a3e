"""The frozen events that lifecycle hooks receive, in the driver process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miles_core.errors import MilesError
    from miles_core.options import Config


def _nobody(line: str) -> None:
    del line


@dataclass(frozen=True)
class Configure:
    """Options are resolved; nothing has started. ``error`` stops the run, ``warn`` takes one line that the user sees before it."""

    config: Config
    error: Callable[[MilesError], None]
    warn: Callable[[str], None] = _nobody


@dataclass(frozen=True)
class RunStart:
    """The run is about to start. ``resumed_from`` is the rollout that the loaded state had finished, or None."""

    config: Config
    run_dir: Path
    num_rollout: int
    resumed_from: int | None


@dataclass(frozen=True)
class RolloutEnd:
    """A rollout was generated and scored. ``metrics`` are those of ``rollout/`` and ``perf/``."""

    rollout_id: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainEnd:
    """The policy was trained on a rollout. ``metrics`` are those of ``train/``, of the last optimizer step."""

    rollout_id: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class WeightsPublished:
    """Every engine serves ``version``."""

    rollout_id: int
    version: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class EvalEnd:
    """An evaluation finished."""

    rollout_id: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CheckpointSaved:
    """A run state was saved."""

    rollout_id: int
    path: Path


@dataclass(frozen=True)
class RunEnd:
    """The run ended; ``error`` is None when it ended well."""

    run_dir: Path
    rollouts: int
    error: BaseException | None
