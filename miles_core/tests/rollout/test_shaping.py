"""Overlong shaping against the equation of the paper, worked by hand."""

from __future__ import annotations

import pytest

from miles_core.rollout.conversion import to_rows
from miles_core.rollout.shaping import OverlongShaping
from miles_core.samples import Invalid, Sample, Scored, Status


def sample(length: int, reward: float | None = 1.0, index: int = 0) -> Sample:
    score = Scored(reward) if reward is not None else Invalid("no label")
    return Sample(index, 0, prompt_ids=[1], response_ids=[7] * length, status=Status.COMPLETED, score=score, reward=reward)


@pytest.mark.parametrize(("length", "wanted"), [(0, 0.0), (79, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (130, -1.0)])
def test_the_papers_equation(length: int, wanted: float) -> None:
    """L = 100 and a buffer of 20 tokens: 0 up to 80, then (80 - n) / 20, and -1 past 100."""
    assert OverlongShaping(100, 0.2, 1.0)(sample(length)) == pytest.approx(wanted)
    assert OverlongShaping(100, 0.2, 3.0)(sample(length)) == pytest.approx(3 * wanted)


def test_it_comes_before_normalisation_and_leaves_the_raw_reward() -> None:
    class Echo:
        needs: frozenset[str] = frozenset()

        def shape_rewards(self, rewards, groups):
            self.given = list(rewards)
            return [2 * reward for reward in rewards]

    echo = Echo()
    samples = [sample(90, 1.0, 0), sample(10, 0.0, 1), sample(100, None, 2)]
    rows = to_rows(samples, echo, penalty=OverlongShaping(100, 0.2, 1.0))  # type: ignore[arg-type]
    assert echo.given == [0.5, 0.0]
    assert [row.reward for row in rows] == [1.0, 0.0, 0.0]
    assert [row.raw_reward for row in rows][:2] == [1.0, 0.0]


def test_a_buffer_may_be_the_whole_limit() -> None:
    shaping = OverlongShaping(10, 1.0, 1.0)
    assert [shaping(sample(length)) for length in (0, 1, 5, 10)] == pytest.approx([0.0, -0.1, -0.5, -1.0])
