"""How many samples of a rollout go into how many optimizer steps, when they may be more or fewer than planned."""

from __future__ import annotations

from collections.abc import Sequence

from miles_core.config import DataOptions
from miles_core.errors import RunError
from miles_core.runtime.plan import BatchPlan
from miles_core.training.rows import TrainRow


def fit_steps(rows: Sequence[TrainRow], batch: BatchPlan, options: DataOptions, data_size: int) -> tuple[Sequence[TrainRow], int]:
    """The rows to train on, and the number of optimizer steps on them.

    With S rows and G = ``global_batch_size`` there are ``min(S // G, planned)`` steps of G rows, and the rest, at the end, is left
    out. With ``--use-dynamic-global-batch-size`` there is one step of as many rows as divide over the ranks. With
    ``--disable-rollout-trim-samples`` the steps are as many, and take all rows.

    Args:
        data_size: data-parallel ranks.

    Raises:
        RunError: there are not enough rows for a step (M328).
    """
    trim = not options.disable_rollout_trim_samples
    unit = data_size if options.use_dynamic_global_batch_size else batch.global_batch_size
    steps = 1 if options.use_dynamic_global_batch_size else min(len(rows) // unit, batch.steps_per_rollout)
    if len(rows) < (unit if trim else data_size):
        raise RunError(
            "M328",
            f"a rollout has {len(rows)} samples, and an optimizer step takes {unit if trim else data_size}",
            owner="miles-core",
            fix="return more samples, lower --global-batch-size, or set --use-dynamic-global-batch-size",
        )
    if not trim:
        return rows, max(steps, 1)
    return rows[: len(rows) // unit * unit if options.use_dynamic_global_batch_size else steps * unit], steps
