"""Decisions of a run's loop that need no processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from miles_core.config import EvaluationOptions
from miles_core.options import Config
from miles_core.runtime.loop import Loop


@pytest.mark.parametrize(
    ("first", "every", "skip", "wanted"),
    [
        (0, 2, False, True),
        (0, 2, True, False),
        (0, None, False, False),
        # A resumed run makes up for the evaluation that was due when it ended, whatever is said of the one before training.
        (2, 2, True, True),
        (3, 2, False, False),
    ],
)
def test_what_is_evaluated_before_training(first: int, every: int | None, skip: bool, wanted: bool) -> None:
    schedule = SimpleNamespace(evaluate_every=every, evaluates_after=lambda rollout: (rollout + 1) % (every or 1) == 0)
    config = Config.of(EvaluationOptions(skip_eval_before_train=skip))
    loop: Loop = SimpleNamespace(schedule=schedule, first=first, config=config)  # type: ignore[assignment]
    assert Loop.evaluates_first(loop) is wanted
