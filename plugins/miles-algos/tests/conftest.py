"""Shared set-up: one thread, so that results do not depend on the machine, and a builder of ragged batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

torch.set_num_threads(1)


@dataclass(frozen=True)
class Ragged:
    """A batch as the loss sees it, in double precision."""

    lengths: tuple[int, ...]
    mask: torch.Tensor
    log_probs: torch.Tensor
    old_log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    advantages: torch.Tensor
    entropy: torch.Tensor


@pytest.fixture
def ragged() -> Callable[[int], Ragged]:
    """Makes a random batch of a seed: 1 to 6 samples of 1 to 9 tokens, some masked, one perhaps wholly."""

    def make(seed: int) -> Ragged:
        g = torch.Generator().manual_seed(seed)
        lengths = tuple(torch.randint(1, 10, (int(torch.randint(1, 7, (), generator=g)),), generator=g).tolist())
        n = sum(lengths)
        mask = (torch.rand(n, generator=g) < 0.8).double()
        if seed % 3 == 0:
            mask[: lengths[0]] = 0

        def log_probs() -> torch.Tensor:
            return -3 * torch.rand(n, generator=g, dtype=torch.float64)

        per_sample = torch.randn(len(lengths), generator=g, dtype=torch.float64)
        advantages = per_sample.repeat_interleave(torch.tensor(lengths))
        return Ragged(lengths, mask, log_probs(), log_probs(), log_probs(), advantages, -log_probs())

    return make
