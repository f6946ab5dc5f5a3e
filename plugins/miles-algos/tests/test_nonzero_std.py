"""Filter nonzero_std."""

from __future__ import annotations

import pytest

from miles_algos.filters.nonzero_std import NonzeroStd
from miles_core.options import Config
from miles_core.protocols import Decision
from miles_core.samples import Invalid, Sample, Scored


def group(*rewards: float | None) -> list[Sample]:
    return [Sample(reward=r, score=Invalid("no label") if r is None else Scored(r)) for r in rewards]


@pytest.mark.parametrize(
    ("rewards", "decision"),
    [
        ((1.0, 0.0), Decision(True)),
        ((0.5, 0.5 + 1e-7), Decision(True)),
        ((0, 0, 0), Decision(False, "zero_std_0.0")),
        ((1, 1, 1), Decision(False, "zero_std_1.0")),
        ((0.1, 0.1, 0.1), Decision(False, "zero_std_0.1")),
        ((-0.04, -0.04), Decision(False, "zero_std_0.0")),
        ((0.5, 0.5 + 1e-9), Decision(False, "zero_std_0.5")),
        ((None, 1.0, 1.0), Decision(False, "zero_std_1.0")),
        ((None, 1.0, 0.0), Decision(True)),
        ((None, 1.0), Decision(False, "ungraded")),
        ((None, None), Decision(False, "ungraded")),
        ((), Decision(False, "ungraded")),
    ],
)
def test_keeps_groups_whose_graded_rewards_differ(rewards: tuple[float | None, ...], decision: Decision) -> None:
    assert NonzeroStd(Config([]))(group(*rewards)) == decision
