"""Advantage grpo: rewards within groups, then tokens."""

from __future__ import annotations

import math
import random

import pytest
import torch

from miles_algos.advantages.grpo import Grpo
from miles_algos.options import GroupRewardOptions, GroupStdOptions
from miles_core.protocols import AdvantageInputs
from miles_core.testing import config_of


def grpo(**options: bool) -> Grpo:
    return Grpo(config_of((GroupRewardOptions, GroupStdOptions), **options))


def oracle(rewards: list[float], groups: list[int]) -> list[float]:
    """The formula of the paper, one sample at a time."""
    out = []
    for r, g in zip(rewards, groups, strict=True):
        own = [x for x, h in zip(rewards, groups, strict=True) if h == g]
        if len(own) == 1:
            out.append(0.0)
            continue
        mean = sum(own) / len(own)
        variance = sum((x - mean) ** 2 for x in own) / (len(own) - 1)
        out.append((r - mean) / (math.sqrt(variance) + 1e-6))
    return out


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0], [1.499997, -0.499999, -0.499999, -0.499999]),
        ([1, 0], [0.707106, -0.707106]),
        ([2, 1, 0, -1], [1.161894, 0.387298, -0.387298, -1.161894]),
    ],
)
def test_hand_worked_groups(rewards: list[float], expected: list[float]) -> None:
    assert grpo().shape_rewards(rewards, [7] * len(rewards)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, -0.3, 1e30, 1e-30])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_equal_rewards_are_exactly_zero(constant: float, n: int) -> None:
    for options in ({}, {"disable_grpo_std_normalization": True}):
        assert grpo(**options).shape_rewards([constant] * n, [0] * n) == [0.0] * n


def test_groups_are_told_apart_by_number_and_may_be_short_and_interleaved() -> None:
    rng = random.Random(0)
    for _ in range(50):
        size = rng.randint(1, 40)
        groups = [rng.randint(0, 6) * 100 - 3 for _ in range(size)]
        rewards = [rng.choice([0.0, 1.0, rng.gauss(0, 3)]) for _ in range(size)]
        assert grpo().shape_rewards(rewards, groups) == pytest.approx(oracle(rewards, groups), abs=1e-6)


def test_without_std_only_the_mean_goes() -> None:
    assert grpo(disable_grpo_std_normalization=True).shape_rewards([3, 1, 5], [0, 0, 1]) == [1.0, -1.0, 0.0]


def test_without_normalisation_rewards_stay() -> None:
    assert grpo(disable_rewards_normalization=True).shape_rewards([3, 1, 5], [0, 0, 1]) == [3.0, 1.0, 5.0]


def test_a_reward_that_is_no_number_is_refused() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            grpo().shape_rewards([1.0, bad], [0, 0])
    with pytest.raises(ValueError, match="2 rewards for 1"):
        grpo().shape_rewards([1.0, 0.0], [0])


def test_no_rewards_at_all() -> None:
    assert grpo().shape_rewards([], []) == []


def test_every_token_gets_its_samples_reward() -> None:
    inputs = AdvantageInputs(rewards=torch.tensor([0.5, -1.0, 2.0]), mask=torch.tensor([1.0, 0, 1, 1, 1, 1]), lengths=(2, 3, 1))
    out = grpo()(inputs)
    assert out.advantages.tolist() == [0.5, 0.5, -1.0, -1.0, -1.0, 2.0]
    assert out.returns.tolist() == out.advantages.tolist()
    assert out.advantages.dtype == torch.float32
