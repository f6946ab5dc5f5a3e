"""Rewards format, sum and by chance."""

from __future__ import annotations

from collections.abc import Callable

from miles_core.config import RewardOptions, RolloutOptions
from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.options import FormatOptions, SumOptions
from miles_rewards.parts import Part, parse_parts

Grade = Callable[..., list[Score]]


def test_the_parts_add_up(grade: Grade) -> None:
    options = SumOptions(sum_of=["math", "format=0.25", "dapo=2"]), RewardOptions(reward_key="acc")
    samples = [
        Sample(response="<think>t</think>\\boxed{7} Answer: 7", label="7"),
        Sample(response="\\boxed{7}", label="7"),
        Sample(response="<think>t</think>7", label="7"),
        Sample(response="<think>t</think>\\boxed{7}"),
    ]
    *scores, last = grade("sum", samples, *options)
    assert [s.value for s in scores if isinstance(s, Scored)] == [3.25, 1.0, 0.25]
    assert scores[0] == Scored(3.25, "math 1, format 1, dapo 1")
    assert last == Invalid("the label is missing; text or a number is needed")


def test_a_part_with_a_dict_needs_a_key(grade: Grade) -> None:
    (score,) = grade(
        "sum", [Sample(response="Answer: 7", label="7")], SumOptions(sum_of=["dapo"]), RewardOptions(reward_key="pred")
    )
    assert score == Invalid("dapo answers with a dict, in which --reward-key names no number")


def test_words_of_a_sum() -> None:
    assert parse_parts(["math", "miles-rewards:format=-0.5"]) == [Part("math", 1.0), Part("miles-rewards:format", -0.5)]


def test_a_think_block_that_the_prompt_opened(grade: Grade) -> None:
    samples = [
        Sample(response="t</think>7"),
        Sample(response="<think>t</think>7"),
        Sample(response="7"),
        Sample(response="</think>7"),
    ]
    assert [s.value for s in grade("format", samples, FormatOptions(format_think_opened=True)) if isinstance(s, Scored)] == [
        1,
        1,
        0,
        0,
    ]


def test_chance_is_even_and_repeatable(grade: Grade) -> None:
    samples = [Sample(index=i, response=f"r{i}", response_ids=[i]) for i in range(2000)]
    draws = {seed: grade("random", samples, RolloutOptions(rollout_seed=seed)) for seed in (1, 2)}
    draws[3] = grade("deterministic_random", samples)
    for found in draws.values():
        values = [s.value for s in found if isinstance(s, Scored)]
        assert set(values) == {0.0, 1.0}
        assert 850 < sum(v for v in values if isinstance(v, float)) < 1150
    assert draws[1] == grade("random", samples, RolloutOptions(rollout_seed=1))
    assert draws[1] != draws[2]
    assert grade("deterministic_random", [Sample(response="a"), Sample(response="b")]) == [Scored(1.0), Scored(0.0)]
