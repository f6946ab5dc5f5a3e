from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_core.config import TrainingOptions
from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.training.plan import BinRule, first_fit


def config(**training) -> Config:
    return Config.of(TrainingOptions(**training))


def test_first_fit_takes_arrival_order():
    assert first_fit([100, 200, 300], 300) == [(0, 1), (2,)]


def test_even_bins_that_exceed_the_cap_give_way_to_first_fit():
    lengths = [69, 177, 86, 278, 91, 94, 52]
    rule = BinRule(cap=300)
    assert rule.count(lengths) == 3
    assert rule.bins(lengths, 3) == [(0, 1, 6), (2, 4, 5), (3,)] == first_fit(lengths, 300)


def test_bins_are_even_where_the_cap_allows():
    lengths = [100, 200, 300, 50, 400, 150, 250, 350]
    found = BinRule(cap=700).bins(lengths, 3)
    assert [sum(lengths[i] for i in members) for members in found] == [650, 600, 550]


def test_a_row_above_the_cap_is_alone_and_counted():
    lengths = [50, 900, 60, 40]
    rule = BinRule(cap=100)
    assert rule.oversize(lengths) == 1
    assert (1,) in rule.bins(lengths, rule.count(lengths))


def test_static_bins_hold_so_many_samples():
    rule = BinRule(samples=3)
    assert rule.count([5] * 7) == 3
    assert rule.bins([5] * 7, 3) == [(0, 1, 2), (3, 4, 5), (6,)]


def test_surplus_micro_batches_split_others_and_then_stay_empty():
    rule = BinRule(samples=4)
    assert rule.bins([9, 1, 1, 7], 3) == [(0,), (1, 2), (3,)]
    assert rule.bins([9, 1], 4) == [(0,), (1,), (), ()]
    assert rule.bins([], 2) == [(), ()]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(20, 80), st.integers(0, 4))
def test_the_cap_holds_and_no_row_is_lost(lengths, cap, surplus):
    rule = BinRule(cap=cap)
    count = rule.count(lengths) + surplus
    found = rule.bins(lengths, count)
    assert len(found) == count
    assert sorted(i for members in found for i in members) == list(range(len(lengths)))
    assert all(len(members) == 1 or sum(lengths[i] for i in members) <= cap for members in found if members)


def test_passes_without_gradients_have_a_cap_of_their_own():
    dynamic = {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 100}
    assert BinRule.scoring(config(**dynamic)) == BinRule(cap=100)
    assert BinRule.scoring(config(**dynamic, log_probs_max_tokens_per_gpu=300)) == BinRule(cap=300)
    assert BinRule.scoring(config(micro_batch_size=4)) == BinRule(samples=4)
    assert BinRule.scoring(config(micro_batch_size=4, log_probs_max_tokens_per_gpu=300)) == BinRule(cap=300)


@pytest.mark.parametrize(
    "training",
    [
        {"use_dynamic_batch_size": True},
        {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 100, "qkv_format": "bshd"},
        {"micro_batch_size": 0},
    ],
)
def test_contradicting_options_are_refused(training):
    with pytest.raises(UsageError, match="M418"):
        BinRule.training(config(**training))
