"""Discounted sums over ragged tokens."""

from __future__ import annotations

import random
import time

import pytest
import torch

from miles_algos.advantages.returns import at_last_token, discounted


def serial(values: list[float], weight: float, lengths: list[int]) -> list[float]:
    """The recursion itself."""
    found, start = [], 0
    for length in lengths:
        later, own = 0.0, []
        for value in reversed(values[start : start + length]):
            later = value + weight * later
            own.append(later)
        found += own[::-1]
        start += length
    return found


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9, 0.99999, 1.0])
def test_equal_to_the_recursion(weight: float) -> None:
    rng = random.Random(int(weight * 1e5))
    for _ in range(30):
        lengths = [rng.choice([0, 1, 2, 3, 7, 8, 9, 31, 64, 100]) for _ in range(rng.randint(0, 6))]
        values = [rng.gauss(0, 1) for _ in range(sum(lengths))]
        found = discounted(torch.tensor(values, dtype=torch.float64), weight, lengths)
        assert found.tolist() == pytest.approx(serial(values, weight, lengths), rel=1e-12, abs=1e-12)


def test_a_hundred_thousand_tokens_are_exact_and_fast() -> None:
    lengths = [100_000, 1, 131_072]
    values = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for weight in (1.0, 0.9999, 0.5):
        started = time.process_time()
        found = discounted(values, weight, lengths)
        # A loop over the elements of the tensor takes several times as long.
        assert time.process_time() - started < 1.5
        expected = torch.tensor(serial(values.tolist(), weight, lengths), dtype=torch.float64)
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-9)


def test_float32_input_is_summed_in_double_precision() -> None:
    ones = torch.full((100_000,), 0.1)
    found = discounted(ones, 1.0, [100_000])
    assert found.dtype == torch.float64
    assert found[0].item() == pytest.approx(float(ones[0]) * 100_000, rel=1e-12)


def test_the_reward_is_at_the_last_trained_token() -> None:
    mask = torch.tensor([1.0, 1, 0, 0, 0, 1, 0, 1])
    placed = at_last_token(torch.tensor([2.0, 3, 5, 7]), mask, (3, 2, 0, 3))
    assert placed.tolist() == [0, 2, 0, 0, 0, 0, 0, 7]
