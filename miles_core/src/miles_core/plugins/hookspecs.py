"""The hook specifications of miles. Providers take no argument and return records; lifecycle hooks take one frozen event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from miles_core.plugins import events
    from miles_core.plugins.records import (
        AdvantageRecord,
        AlgorithmRecord,
        BackendRecord,
        CommandRecord,
        EngineRecord,
        FilterRecord,
        LoggerRecord,
        LossRecord,
        MiddlewareRecord,
        RewardRecord,
    )

PROJECT = "miles"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def miles_backend() -> Sequence[BackendRecord]:  # type: ignore[empty-body]
    """Offer training backends."""


@hookspec
def miles_engine() -> Sequence[EngineRecord]:  # type: ignore[empty-body]
    """Offer rollout engines."""


@hookspec
def miles_advantage() -> Sequence[AdvantageRecord]:  # type: ignore[empty-body]
    """Offer advantage estimators."""


@hookspec
def miles_loss() -> Sequence[LossRecord]:  # type: ignore[empty-body]
    """Offer losses."""


@hookspec
def miles_reward() -> Sequence[RewardRecord]:  # type: ignore[empty-body]
    """Offer rewards."""


@hookspec
def miles_filter() -> Sequence[FilterRecord]:  # type: ignore[empty-body]
    """Offer filters of sample groups."""


@hookspec
def miles_middleware() -> Sequence[MiddlewareRecord]:  # type: ignore[empty-body]
    """Offer router middlewares."""


@hookspec
def miles_logger() -> Sequence[LoggerRecord]:  # type: ignore[empty-body]
    """Offer metric loggers."""


@hookspec
def miles_algo() -> Sequence[AlgorithmRecord]:  # type: ignore[empty-body]
    """Offer algorithm recipes."""


@hookspec
def miles_command() -> Sequence[CommandRecord]:  # type: ignore[empty-body]
    """Offer commands of the CLI."""


@hookspec
def miles_configure(event: events.Configure) -> None:
    """Check the resolved options before anything starts; report problems with ``event.error(...)``."""


@hookspec
def miles_run_start(event: events.RunStart) -> None:
    """A run is about to start: processes are placed, nothing is trained yet."""


@hookspec
def miles_rollout_end(event: events.RolloutEnd) -> None:
    """A rollout was generated and scored."""


@hookspec
def miles_train_end(event: events.TrainEnd) -> None:
    """The policy was trained on a rollout."""


@hookspec
def miles_weights_published(event: events.WeightsPublished) -> None:
    """All engines serve a new version of the weights."""


@hookspec
def miles_eval_end(event: events.EvalEnd) -> None:
    """An evaluation finished."""


@hookspec
def miles_checkpoint_saved(event: events.CheckpointSaved) -> None:
    """A run state was saved, whole."""


@hookspec
def miles_run_end(event: events.RunEnd) -> None:
    """The run ended, well or with an error."""
