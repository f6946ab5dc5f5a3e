"""Grading: a failure is counted and masked, never a zero; a broken contract ends the run."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import numpy as np
import pytest

from miles_core.errors import RunError
from miles_core.rollout.grading import Grader, Tally
from miles_core.samples import Invalid, Sample, Score, Scored, Timeout


def grade(reward, count: int = 3, key: str | None = None) -> tuple[list[Sample], Tally]:
    samples = [Sample(i, 0, response_ids=[1, 2]) for i in range(count)]
    tally = Tally()
    asyncio.run(Grader(reward, "judge", key).grade(samples, tally))
    return samples, tally


def test_numbers_are_rewards(judge) -> None:
    samples, tally = grade(judge(lambda s: Scored(s.index / 2)))
    assert [s.reward for s in samples] == [0.0, 0.5, 1.0]
    assert (tally.graded, tally.failures) == (3, 0)


@pytest.mark.parametrize("value", [1, True, np.float32(1), np.int64(1), np.bool_(True)])
def test_every_kind_of_number_is_a_float(judge, value: object) -> None:
    if isinstance(value, np.bool_) and not hasattr(value, "__float__"):
        pytest.skip("this NumPy's bool is no number")
    reward = grade(judge(lambda s: Scored(value)))[0][0].reward
    assert reward == 1.0
    assert type(reward) is float


def test_an_exception_is_a_failure_of_every_sample(judge) -> None:
    samples, tally = grade(judge(lambda s: KeyError("label") if s.index == 1 else Scored(1.0)))
    assert [s.score for s in samples] == [Invalid("KeyError: 'label'")] * 3
    assert [s.reward for s in samples] == [None] * 3
    assert [s.train_mask() for s in samples] == [[0, 0]] * 3
    assert (tally.graded, tally.invalid, tally.timeout) == (0, 3, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_what_is_not_finite_is_a_failure(judge, value: float) -> None:
    samples, tally = grade(judge(lambda s: Scored(value) if s.index == 1 else Scored(1.0)))
    assert [s.reward for s in samples] == [1.0, None, 1.0]
    assert isinstance(samples[1].score, Invalid)
    assert (tally.graded, tally.invalid) == (2, 1)


def test_failures_are_told_apart(judge) -> None:
    verdicts: list[Score] = [Invalid("no label"), Timeout(2.0), Scored(0.0)]
    samples, tally = grade(judge(lambda s: verdicts[s.index]))
    assert [s.score for s in samples] == verdicts
    assert [s.failed for s in samples] == [True, True, False]
    assert (tally.graded, tally.invalid, tally.timeout) == (1, 1, 1)
    assert tally.details == ["sample 0: no label", "sample 1: Timeout"]


def test_a_key_picks_the_number_of_a_dict(judge) -> None:
    reward = judge(lambda s: Scored({"acc": s.index, "note": "x"}))
    assert [s.reward for s in grade(reward, key="acc")[0]] == [0.0, 1.0, 2.0]
    assert [s.reward for s in grade(judge(lambda s: Scored(0.5)), key="acc")[0]] == [0.5] * 3


@pytest.mark.parametrize(("key", "said"), [(None, "--reward-key is not set"), ("note", "no number"), ("absent", "no number")])
def test_a_dict_without_the_number_ends_the_run(judge, key: str | None, said: str) -> None:
    with pytest.raises(RunError, match="M403") as caught:
        grade(judge(lambda s: Scored({"acc": 1.0, "note": "x"})), key=key)
    assert said in caught.value.what
    assert "acc, note" in caught.value.why


@pytest.mark.parametrize("value", ["1.0", None, [1.0]])
def test_a_score_that_is_no_number_ends_the_run(judge, value: object) -> None:
    with pytest.raises(RunError, match="M403"):
        grade(judge(lambda s: Scored(value)))


class Fixed:
    """A reward that returns what it is told to."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def score(self, samples: Sequence[Sample]) -> object:
        return self.answer


@pytest.mark.parametrize(
    "answer", [[], [Scored(1.0)] * 2, [Scored(1.0)] * 4, None, 1.0, [1.0, 1.0, 1.0], [Scored(1.0), None, Scored(1.0)]]
)
def test_a_reward_that_breaks_its_contract_ends_the_run(answer: object) -> None:
    with pytest.raises(RunError, match="M404"):
        grade(Fixed(answer))


def test_no_samples_ask_no_reward(judge) -> None:
    reward = judge(lambda s: Scored(1.0))
    grade(reward, count=0)
    assert reward.seen == []


def test_another_key_is_the_same_reward(judge) -> None:
    grader = Grader(judge(lambda s: Scored({"a": 1.0, "b": 2.0})), "judge", "a").with_key("b")
    sample = Sample(0)
    asyncio.run(grader.grade([sample], Tally()))
    assert sample.reward == 2.0


def test_the_limit_is_a_share() -> None:
    Tally(graded=1, invalid=1).check(0.5, "judge")
    Tally().check(0.0, "judge")
    Tally(graded=3).check(0.0, "judge")
    with pytest.raises(RunError, match="M402") as caught:
        Tally(graded=9, invalid=9, timeout=2, details=["sample 3: no label"]).check(0.5, "judge")
    assert caught.value.owner == "reward judge"
    assert "11 of 20" in caught.value.what
    assert "no label" in caught.value.why


def test_the_first_few_failures_are_described(judge) -> None:
    assert len(grade(judge(lambda s: Invalid("no label")), count=50)[1].details) == 3
