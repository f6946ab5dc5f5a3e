"""Sums over the tokens that follow, discounted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from miles_core.training.ragged import last_masked


def discounted(values: torch.Tensor, weight: float, lengths: Sequence[int]) -> torch.Tensor:
    """``S_t = x_t + weight * S_{t+1}`` within each sample, in float64, ``[N]``.

    By doubling: a sum over m tokens and one over the m that follow make one over 2m, so that a response of 100,000 tokens takes 17
    passes over the batch.
    """
    sums = values.to(torch.float64)
    counts = torch.as_tensor(list(lengths), dtype=torch.int64)
    ends = counts.cumsum(0).repeat_interleave(counts).to(sums.device)
    left = ends - torch.arange(sums.shape[0], device=sums.device)
    reach, longest = 1, max(lengths, default=0)
    while reach < longest and weight:
        later = torch.zeros_like(sums)
        later[:-reach] = sums[reach:]
        sums = sums + weight**reach * torch.where(left > reach, later, 0)
        reach *= 2
    return sums


def at_last_token(rewards: torch.Tensor, mask: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Each sample's reward at its last unmasked token, 0 elsewhere, ``[N]``; a wholly masked sample's is dropped."""
    placed = torch.zeros(mask.shape[0], dtype=torch.float64, device=mask.device)
    last = last_masked(mask, lengths)
    present = last >= 0
    placed[last[present]] = rewards.to(placed.dtype)[present]
    return placed
