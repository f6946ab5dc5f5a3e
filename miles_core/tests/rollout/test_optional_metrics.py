"""Metrics that are off by default, by examples worked by hand."""

from __future__ import annotations

import itertools
import statistics

import pytest

from miles_core.config import LoggingOptions
from miles_core.rollout.optional_metrics import (
    categories,
    correct_samples,
    optional_evaluation_metrics,
    optional_rollout_metrics,
    pass_at,
    pass_rates,
    turns,
)
from miles_core.samples import Invalid, Sample, Scored, Status


def sample(reward: float | None, tokens: int = 2, **changes) -> Sample:
    score = Scored(reward) if reward is not None else Invalid("no label")
    return Sample(**{"response_ids": [7] * tokens, "reward": reward, "score": score, **changes})


def group(*rewards: float | None) -> list[Sample]:
    return [sample(reward) for reward in rewards]


def test_pass_rates() -> None:
    # Of the first group: 1/4, 1 - C(3,2)/C(4,2) = 1/2, 1; of the second: 1/2, 1 - 1/6, 1.
    found = pass_rates([group(1, 0, 0, 0), group(1, 1, 0, 0)], None)
    assert found == {"pass@1": pytest.approx(0.375), "pass@2": pytest.approx(2 / 3), "pass@4": 1.0}


def test_pass_rates_of_a_group_that_is_no_power_of_two() -> None:
    found = pass_rates([group(1, 0, 0, 0, 0, 0)], None)
    assert found == {"pass@1": pytest.approx(1 / 6), "pass@2": pytest.approx(1 / 3), "pass@4": pytest.approx(2 / 3)}


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (5, 0, 2), (5, 5, 2), (6, 1, 4)])
def test_the_estimator_is_the_mean_over_all_choices(n: int, c: int, k: int) -> None:
    outcomes = [1] * c + [0] * (n - c)
    assert pass_at(n, c, k) == pytest.approx(statistics.fmean(max(chosen) for chosen in itertools.combinations(outcomes, k)))


def test_correct_is_exactly_one_unless_a_threshold_is_given() -> None:
    rewards = group(2.0, 0.99, 0.5, 1.0)
    assert pass_rates([rewards], None)["pass@1"] == 0.25
    assert pass_rates([rewards], 0.99)["pass@1"] == 0.75


def test_groups_that_nobody_could_grade_and_single_samples_give_no_rate() -> None:
    assert pass_rates([group(1, None)], None) == {}
    assert pass_rates([group(1)], None) == {}
    assert pass_rates([group(1, None), group(0, 0)], None) == {"pass@1": 0.0, "pass@2": 0.0}


def test_correct_samples() -> None:
    samples = [
        sample(1.0, 1, rollout_log_probs=[-1.0]),
        sample(1.0, 2, rollout_log_probs=[-0.5, -100.0], loss_mask=[1, 0]),
        sample(1.0, 3),
        sample(1.0, 10, rollout_log_probs=[-0.3] * 10),
        sample(0.0, 99, rollout_log_probs=[-9.0] * 99),
        sample(None, 99),
    ]
    # Quartiles of 1, 2, 3, 10: 1.75, 2.5, 4.75; entropies 1, 0.5 (one token is masked) and 0.3, of three samples.
    assert correct_samples(samples, None) == {
        "correct_samples": 4.0,
        "correct_length/mean": 4.0,
        "correct_length/p25": 1.75,
        "correct_length/p50": 2.5,
        "correct_length/p75": 4.75,
        "correct_entropy": pytest.approx(0.6),
    }


def test_one_correct_sample_and_none() -> None:
    assert correct_samples([sample(1.0, 5)], None) == {
        "correct_samples": 1.0,
        **{f"correct_length/{name}": 5.0 for name in ("mean", "p25", "p50", "p75")},
    }
    assert correct_samples([sample(0.5)], None) == {"correct_samples": 0.0}
    assert correct_samples([sample(0.5)], 0.5)["correct_samples"] == 1.0


def test_categories() -> None:
    made = [
        *(sample(0.0, score=Scored({"acc": 0, "why": "no answer"})) for _ in range(2)),
        sample(0.0, score=Scored({"acc": 0, "why": "a/b"})),
        sample(1.0, score=Scored(1.0)),
        sample(None),
    ]
    assert categories(made, "why") == {"error_cat/no_answer": 0.4, "error_cat/a_b": 0.2, "error_cat/missing": 0.4}


def test_rare_categories_share_a_metric() -> None:
    many = [sample(0.0, score=Scored({"why": number})) for number in range(40) for _ in range(1 + (number < 32))]
    found = categories(many, "why")
    assert len(found) == 33
    assert found["error_cat/other"] == pytest.approx(8 / 72)
    assert sum(found.values()) == pytest.approx(1.0)


def test_turns() -> None:
    samples = [
        sample(1.0, 6, loss_mask=[1, 1, 0, 0, 1, 1], metadata={"round_number": 2}),
        sample(0.0, 3, status=Status.TRUNCATED, metadata={"round_number": 5}),
    ]
    assert turns(samples) == {
        "raw_response_length/response_length_mean": 4.5,
        "raw_response_length/response_length_max": 6.0,
        "raw_response_length/response_length_min": 3.0,
        "raw_response_length/response_length_clip_ratio": 0.5,
        "wo_obs_response_length/response_length_mean": 3.5,
        "wo_obs_response_length/response_length_max": 4.0,
        "wo_obs_response_length/response_length_min": 3.0,
        "multi_turn_metric/round_number_mean": 3.5,
        "multi_turn_metric/round_number_max": 5.0,
        "multi_turn_metric/round_number_min": 2.0,
    }
    assert not [name for name in turns([sample(1.0)]) if "round" in name]


def test_nothing_is_added_that_no_option_asks_for() -> None:
    groups = [group(1, 0)]
    assert optional_rollout_metrics(groups, LoggingOptions()) == {}
    assert optional_evaluation_metrics("set", groups, LoggingOptions(log_multi_turn=True, log_correct_samples=True)) == {}


def test_where_each_metric_is_logged() -> None:
    groups = [group(1, 0)]
    everything = LoggingOptions(log_multi_turn=True, log_passrate=True, log_correct_samples=True, log_reward_category="why")
    assert {name.partition("/")[0] for name in optional_rollout_metrics(groups, everything)} == {
        "passrate",
        "rollout",
        "multi_turn",
    }
    found = optional_evaluation_metrics("set", groups, everything)
    assert found == {"eval/set-pass@1": 0.5, "eval/set-pass@2": 1.0, "eval/set/error_cat/missing": 1.0}
