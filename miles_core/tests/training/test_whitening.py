"""Whitening over one rank; test_two_ranks.py has two."""

from __future__ import annotations

import math

import pytest
import torch

from miles_core.protocols.backend import Parallel
from miles_core.training.whitening import whitened

ALONE = Parallel(0, 1, 0, 1, None)
CPU = torch.device("cpu")


def test_a_hand_worked_example() -> None:
    found = whitened(torch.tensor([1.0, 1, -1, 5]), torch.tensor([1.0, 1, 1, 0]), ALONE, CPU)
    assert found[:3].tolist() == pytest.approx([0.57735, 0.57735, -1.15470], abs=1e-5)
    assert math.isfinite(found[3])


def test_mean_0_and_variance_1_under_the_mask() -> None:
    random = torch.Generator().manual_seed(1)
    values, mask = torch.randn(500, generator=random) * 3 + 5, (torch.rand(500, generator=random) < 0.6).float()
    values[mask == 0] = math.nan
    found = whitened(values, mask, ALONE, CPU)[mask != 0]
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.var()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mask", [[1.0, 1, 1], [0.0, 1, 0], [0.0, 0, 0]])
def test_advantages_without_variance_are_0(mask: list[float]) -> None:
    # 0.1 three times has a mean that is not 0.1: the division must not blow that up.
    assert whitened(torch.tensor([0.1, 0.1, 0.1]), torch.tensor(mask), ALONE, CPU).tolist() == [0, 0, 0]
