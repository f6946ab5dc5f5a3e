"""Samples to rows: shaped over what was graded, masked where it was not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from miles_core.rollout.conversion import to_rows
from miles_core.samples import Invalid, Sample, Scored, Status


class Centred:
    """Rewards less their group's mean; remembers what it was given."""

    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.given: list[tuple[list[float], list[int]]] = []

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        self.given.append((list(rewards), list(groups)))
        mean = {g: np.mean([r for r, h in zip(rewards, groups, strict=True) if h == g]) for g in groups}
        return [float(r - mean[g]) for r, g in zip(rewards, groups, strict=True)]

    def __call__(self, inputs: object) -> object:
        raise AssertionError("only training ranks compute advantages")


def sample(index: int, group: int, reward: float | None, response: int = 2, **changes) -> Sample:
    score = Scored(reward) if reward is not None else Invalid("no label")
    made = {
        "prompt_ids": [1, 2, 3],
        "response_ids": [7] * response,
        "rollout_log_probs": [-0.25] * response,
        "weight_versions": [(4, response)],
        "status": Status.COMPLETED,
        "score": score,
        "reward": reward,
    }
    return Sample(index=index, group_index=group, **{**made, **changes})


def test_a_row_has_what_its_sample_has() -> None:
    made = sample(5, 2, 1.0, status=Status.TRUNCATED, weight_versions=[(4, 1), (3, 1)], loss_mask=[0, 1])
    (row,) = to_rows([made], Centred())
    assert (row.index, row.group, row.response_length, row.reward, row.raw_reward) == (5, 2, 2, 0.0, 1.0)
    assert (row.truncated, row.version) == (True, 3)
    assert (row.tokens.tolist(), row.tokens.dtype) == ([1, 2, 3, 7, 7], np.int32)
    assert (row.mask.tolist(), row.mask.dtype) == ([0.0, 1.0], np.float32)
    assert row.rollout_log_probs is not None
    assert (row.rollout_log_probs.tolist(), row.rollout_log_probs.dtype) == ([-0.25, -0.25], np.float32)


def test_failures_are_masked_and_left_out_of_their_group() -> None:
    advantage = Centred()
    rows = to_rows([sample(0, 0, 1.0), sample(1, 0, None), sample(2, 0, 0.0), sample(3, 1, None)], advantage)
    assert advantage.given == [([1.0, 0.0], [0, 0])]
    assert [row.reward for row in rows] == [0.5, 0.0, -0.5, 0.0]
    assert [row.mask.tolist() for row in rows] == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert [math.isnan(row.raw_reward) for row in rows] == [False, True, False, True]


def test_removed_samples_count_in_their_group_and_are_masked() -> None:
    rows = to_rows([sample(0, 0, 1.0, removed=True), sample(1, 0, 0.0)], Centred())
    assert [(row.reward, row.mask.tolist()) for row in rows] == [(0.5, [0, 0]), (-0.5, [1, 1])]


def test_an_empty_response_is_the_last_token_of_its_prompt_masked() -> None:
    asked, unasked = sample(0, 0, 0.0, response=0), sample(1, 0, 1.0, response=0, rollout_log_probs=None, weight_versions=[])
    for row, version in zip(to_rows([asked, unasked], Centred()), (4, -1), strict=True):
        assert (row.tokens.tolist(), row.response_length, row.mask.tolist()) == ([1, 2, 3], 1, [0.0])
        assert row.rollout_log_probs is not None
        assert row.rollout_log_probs.tolist() == [0.0]
        assert row.version == version


def test_without_an_advantage_nothing_is_shaped() -> None:
    made = sample(0, 0, None, score=None, rollout_log_probs=None, weight_versions=[])
    (row,) = to_rows([made], None)
    assert (row.reward, row.mask.tolist(), row.rollout_log_probs, row.version) == (0.0, [1, 1], None, -1)


def test_nothing_graded_shapes_nothing() -> None:
    advantage = Centred()
    assert [row.reward for row in to_rows([sample(0, 0, None), sample(1, 0, None)], advantage)] == [0.0, 0.0]
    assert advantage.given == []
