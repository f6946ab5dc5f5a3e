"""More and fewer samples than planned."""

from __future__ import annotations

import pytest

from miles_core.config import DataOptions
from miles_core.errors import RunError
from miles_core.runtime.plan import BatchPlan
from miles_core.training.steps import fit_steps

PLAN = BatchPlan(
    rollout_batch_size=4, n_samples=4, global_batch_size=8, steps_per_rollout=2, num_rollout=1, rollouts_per_epoch=None
)
TRIM, KEEP = DataOptions(), DataOptions(disable_rollout_trim_samples=True)
ONE = DataOptions(use_dynamic_global_batch_size=True)


@pytest.mark.parametrize(
    ("options", "count", "kept", "steps"),
    [
        *[(TRIM, 16, 16, 2), (TRIM, 15, 8, 1), (TRIM, 19, 16, 2), (TRIM, 40, 16, 2)],
        *[(KEEP, 16, 16, 2), (KEEP, 15, 15, 1), (KEEP, 19, 19, 2), (KEEP, 40, 40, 2), (KEEP, 3, 3, 1)],
        *[(ONE, 16, 16, 1), (ONE, 15, 14, 1), (ONE, 3, 2, 1)],
    ],
)
def test_rows_and_steps(options: DataOptions, count: int, kept: int, steps: int) -> None:
    rows = list(range(count))
    found, number = fit_steps(rows, PLAN, options, 2)  # type: ignore[arg-type]
    assert (list(found), number) == (rows[:kept], steps)


@pytest.mark.parametrize(("options", "count"), [(TRIM, 7), (KEEP, 1), (ONE, 1)])
def test_too_few_rows(options: DataOptions, count: int) -> None:
    with pytest.raises(RunError, match="M328"):
        fit_steps(list(range(count)), PLAN, options, 2)  # type: ignore[arg-type]
