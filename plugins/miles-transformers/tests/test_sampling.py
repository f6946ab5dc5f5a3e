"""Draws: their distribution, supports and seeds."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_transformers.sampling import Controls, sample, seed_of, uniform


def controls(rows: int, **given: object) -> Controls:
    """Plain sampling with a seed per row."""
    base = Controls(
        temperature=torch.ones(rows),
        greedy=torch.zeros(rows, dtype=torch.bool),
        top_p=torch.ones(rows),
        top_k=torch.full((rows,), 1 << 20),
        seed=torch.arange(rows),
        counter=torch.zeros(rows, dtype=torch.int64),
        filtered=None,
        banned=None,
        any_temperature=False,
        any_greedy=False,
        all_greedy=False,
    )
    return dataclasses.replace(base, **given)


def chi_square(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    """Of observed against expected counts; its mean is the number of tokens with a probability, less one."""
    expected = probs * len(tokens)
    observed = torch.bincount(tokens, minlength=len(probs)).double()
    assert observed[probs == 0].sum() == 0
    keep = probs > 0
    return float(((observed - expected) ** 2 / expected.clamp(min=1e-30))[keep].sum())


LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.2, 0.0, -3.0, 1.9, 0.3])
ROWS = 40_000
BOUND = 7 + 4 * math.sqrt(14)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_match_softmax(temperature):
    given = controls(ROWS, temperature=torch.full((ROWS,), temperature), any_temperature=True)
    tokens, log_probs = sample(LOGITS.expand(ROWS, -1), given)
    probs = torch.softmax(LOGITS.double() / temperature, -1)
    assert chi_square(tokens, probs) < BOUND
    assert torch.allclose(log_probs.double(), probs.log()[tokens], atol=1e-6)


def test_frequencies_over_counters_of_one_seed_match_softmax():
    given = controls(ROWS, seed=torch.full((ROWS,), 7), counter=torch.arange(ROWS))
    tokens, _ = sample(LOGITS.expand(ROWS, -1), given)
    assert chi_square(tokens, torch.softmax(LOGITS.double(), -1)) < BOUND
    pairs = tokens[:-1] * 8 + tokens[1:]
    joint = torch.outer(torch.softmax(LOGITS.double(), -1), torch.softmax(LOGITS.double(), -1)).flatten()
    assert chi_square(pairs, joint) < 63 + 4 * math.sqrt(126)


def test_top_k_keeps_the_likeliest_and_reports_whole_log_probs():
    given = controls(ROWS, top_k=torch.full((ROWS,), 3), filtered=torch.arange(ROWS))
    tokens, log_probs = sample(LOGITS.expand(ROWS, -1), given)
    whole = torch.softmax(LOGITS.double(), -1)
    kept = torch.zeros(8, dtype=torch.float64)
    kept[[0, 6, 3]] = whole[[0, 6, 3]]
    assert chi_square(tokens, kept / kept.sum()) < 2 + 4 * 2
    assert torch.allclose(log_probs.double(), whole.log()[tokens], atol=1e-6)


@pytest.mark.parametrize(("top_p", "support"), [(0.3, {0}), (0.5, {0, 6}), (0.78, {0, 6, 3}), (1.0, set(range(8)))])
def test_top_p_keeps_the_token_that_crosses(top_p, support):
    # Sorted probabilities: .313 .283 .141 .070 .057 ... so .313 + .283 < .78 and with .141 still less: .737.
    order = torch.softmax(LOGITS, -1).sort(descending=True)
    expected, total = set(), 0.0
    for probability, token in zip(order.values.tolist(), order.indices.tolist(), strict=True):
        if total >= top_p:
            break
        expected.add(token)
        total += probability
    given = controls(ROWS, top_p=torch.full((ROWS,), top_p), filtered=torch.arange(ROWS))
    tokens, _ = sample(LOGITS.expand(ROWS, -1), given)
    assert set(tokens.tolist()) == expected
    assert support <= expected


def test_top_p_counts_within_what_top_k_left():
    given = controls(ROWS, top_k=torch.full((ROWS,), 2), top_p=torch.full((ROWS,), 0.5), filtered=torch.arange(ROWS))
    tokens, _ = sample(LOGITS.expand(ROWS, -1), given)
    # .313 / (.313 + .283) = .525 crosses .5 at once.
    assert set(tokens.tolist()) == {0}


def test_greedy_takes_the_first_maximum_at_temperature_one():
    given = controls(3, greedy=torch.tensor([True, False, True]), any_greedy=True)
    tokens, log_probs = sample(LOGITS.expand(3, -1), given)
    assert tokens[[0, 2]].tolist() == [0, 0]
    assert log_probs[0] == torch.log_softmax(LOGITS, -1)[0]


def test_banned_tokens_are_not_drawn_and_do_not_change_log_probs():
    banned = torch.tensor([[0, 6, -1]]).expand(ROWS, -1)
    tokens, log_probs = sample(LOGITS.expand(ROWS, -1), controls(ROWS, banned=banned))
    probs = torch.softmax(LOGITS.double(), -1)
    assert torch.allclose(log_probs.double(), probs.log()[tokens], atol=1e-6)
    probs[[0, 6]] = 0
    assert chi_square(tokens, probs / probs.sum()) < BOUND


def test_rows_without_filters_draw_alike_beside_rows_with():
    plain, _ = sample(LOGITS.expand(200, -1), controls(200))
    mixed, _ = sample(
        LOGITS.expand(200, -1), controls(200, top_k=torch.tensor([1, 1 << 20] * 100), filtered=torch.arange(0, 200, 2))
    )
    assert mixed[1::2].tolist() == plain[1::2].tolist()
    assert mixed[::2].tolist() == [0] * 100


def test_an_impossible_token_is_never_drawn():
    logits = torch.full((ROWS, 5), float("-inf"))
    logits[:, 2] = 0.0
    tokens, log_probs = sample(logits, controls(ROWS))
    assert tokens.unique().tolist() == [2]
    assert (log_probs == 0).all()


def test_logits_that_are_not_finite_show():
    _, log_probs = sample(torch.tensor([[float("nan"), 0.0], [0.0, 0.0]]), controls(2))
    assert log_probs.isfinite().tolist() == [False, True]


@settings(max_examples=50, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31))
def test_uniform_is_the_published_hash(seed, counter):
    """SplitMix64 in plain Python integers gives the same numbers as the wrapped int64 tensors."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return x ^ (x >> 31)

    gamma = 0x9E3779B97F4A7C15
    mixed = mix((mix((seed + gamma) & mask) + counter * gamma) & mask)
    assert uniform(torch.tensor([seed]), torch.tensor([counter]))[0].item() == ((mixed >> 16) + 0.5) / 2**48


def test_seeds_of_unseeded_requests_differ():
    assert len({seed_of(base, number) for base in (0, 1, 42) for number in range(500)}) == 1500
