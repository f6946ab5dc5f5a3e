"""What is logged of rollouts and evaluations."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from miles_core.rollout.collector import Collected
from miles_core.rollout.grading import Tally
from miles_core.rollout.metrics import evaluation_metrics, rollout_metrics
from miles_core.samples import Invalid, Sample, Scored, Status


def sample(reward: float | None, tokens: int = 2, group: int = 0, **changes) -> Sample:
    made = {"response_ids": [7] * tokens, "status": Status.COMPLETED, "weight_versions": [(4, tokens)]}
    score = Scored(reward) if reward is not None else Invalid("no label")
    return Sample(group_index=group, reward=reward, score=score, **{**made, **changes})


def metrics(*groups: list[Sample], **changes) -> dict[str, float]:
    tokens = sum(s.response_length for group in groups for s in group)
    collected = Collected(list(groups), **{"tally": Tally(), "finished": list(groups), "tokens": tokens, **changes})
    return rollout_metrics(collected, seconds=2.0, devices=2, version=4)


def test_a_rollout() -> None:
    dropped = [sample(0.0, 10), sample(0.0, 10)]
    kept = [[sample(1.0, 1), sample(0.0, 3)], [sample(0.5, 4, status=Status.TRUNCATED), sample(None, 8, weight_versions=[(2, 8)])]]
    found = metrics(
        *kept,
        finished=[dropped, *kept],
        tokens=36,
        submissions=2,
        resumed_groups=1,
        surplus=3,
        tally=Tally(5, 1, 0),
        dropped=Counter({"zero_std_0.0": 1}),
    )
    assert found == {
        "rollout/response_len/mean": 4.0,
        "rollout/response_len/median": 3.5,
        "rollout/response_len/max": 8.0,
        "rollout/response_len/min": 1.0,
        "rollout/truncated_ratio": 0.25,
        "rollout/repetition_frac": 0.0,
        "rollout/raw_reward": 0.5,
        "rollout/reward_failures/invalid": 1.0,
        "rollout/reward_failures/timeout": 0.0,
        "rollout/aborted": 0.0,
        "rollout/informative_groups": 1.0,
        "rollout/zero_std/count_0.5": 1.0,
        "rollout/dynamic_filter/drop_zero_std_0.0": 1.0,
        "rollout/generated_samples": 6.0,
        "rollout/submissions": 2.0,
        "rollout/resumed_groups": 1.0,
        "rollout/resumed_samples": 0.0,
        "rollout/surplus_groups": 3.0,
        "rollout/kept_groups": 0.0,
        "rollout/returned_prompts": 0.0,
        # 8 of 16 tokens are two versions old.
        "rollout/staleness_mean": 1.0,
        "rollout/staleness_max": 2.0,
        "perf/rollout_time": 2.0,
        # 36 tokens, those of dropped groups included, in 2 seconds on 2 devices.
        "perf/tokens_per_gpu_per_sec": 9.0,
        # 8 of the 16 accepted tokens could be graded.
        "perf/effective_tokens_per_gpu_per_sec": 2.0,
        "perf/longest_sample_tokens_per_sec": 4.0,
    }


def test_groups_of_equal_rewards_are_counted_by_reward() -> None:
    found = metrics([sample(1.0), sample(1.0)], [sample(1.0), sample(None)], [sample(-0.01), sample(-0.01)], [sample(None)])
    assert {name: value for name, value in found.items() if "zero_std" in name} == {
        "rollout/zero_std/count_1": 2.0,
        "rollout/zero_std/count_0": 1.0,
    }
    assert found["rollout/informative_groups"] == 0.0


def test_a_rollout_without_a_graded_sample_has_no_reward() -> None:
    assert "rollout/raw_reward" not in metrics([sample(None)])


def test_a_rollout_without_an_engines_token_is_not_stale() -> None:
    assert "rollout/staleness_max" not in metrics([sample(0.0, 0, weight_versions=[])])


@pytest.mark.parametrize(("text", "expected"), [("ab" * 6000, 1.0), ("ab" * 5000, 0.0), (None, 0.0)])
def test_long_repetition_is_noticed(text: str | None, expected: float) -> None:
    if text is None:
        drawn = random.Random(0)
        text = "".join(chr(drawn.randrange(32, 127)) for _ in range(12000))
    assert metrics([sample(0.0, response=text)])["rollout/repetition_frac"] == expected


def test_an_evaluation_is_the_mean_over_what_was_graded() -> None:
    found = evaluation_metrics("gsm8k", [sample(1.0, 2), sample(0.0, 4, status=Status.TRUNCATED), sample(None, 6), sample(1.0, 4)])
    assert found == {
        "eval/gsm8k": pytest.approx(2 / 3),
        "eval/gsm8k-truncated_ratio": 0.25,
        "eval/gsm8k/reward_failures": 1.0,
        "eval/gsm8k/response_len/mean": 4.0,
        "eval/gsm8k/response_len/median": 4.0,
        "eval/gsm8k/response_len/max": 6.0,
        "eval/gsm8k/response_len/min": 2.0,
        "eval/gsm8k/repetition_frac": 0.0,
    }


def test_an_evaluation_that_could_not_be_graded_is_no_zero() -> None:
    assert math.isnan(evaluation_metrics("x", [sample(None)])["eval/x"])
