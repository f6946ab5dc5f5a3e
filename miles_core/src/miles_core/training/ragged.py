"""Operations per sample on tokens that are laid end to end.

Everywhere: ``lengths`` has B entries, tokens of each sample; N is their sum; per-token tensors are ``[N]``.
All are differentiable in their floating-point arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def segment_ids(lengths: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """The sample that each token belongs to, int64, ``[N]``."""
    # Made on the host: on an accelerator the number of tokens would have to be read back.
    counts = torch.tensor(list(lengths), dtype=torch.int64, device="cpu")
    ids = torch.repeat_interleave(torch.arange(len(lengths), device="cpu"), counts)
    return ids if device is None else ids.to(device, non_blocking=True)


def sample_sum(values: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Sum over each sample's tokens, ``[B]``; 0 for a sample without tokens."""
    sums = torch.zeros(len(lengths), dtype=values.dtype, device=values.device)
    return sums.index_add(0, segment_ids(lengths, values.device), values)


def masked_sum(values: torch.Tensor, mask: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Sum of ``mask * values`` over each sample's tokens, ``[B]``. Values at masked tokens may be anything, NaN included."""
    return sample_sum(torch.where(mask != 0, values * mask, 0), lengths)


def masked_mean(values: torch.Tensor, mask: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Mean over each sample's unmasked tokens, ``[B]``; 0 for a sample that has none."""
    return masked_sum(values, mask, lengths) / sample_sum(mask, lengths).clamp(min=1)


def broadcast(values: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Each sample's value at each of its tokens, ``[B]`` to ``[N]``."""
    return values.index_select(0, segment_ids(lengths, values.device))


def last_masked(mask: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Position in the N tokens of each sample's last token with a non-zero mask, int64, ``[B]``; -1 where there is none."""
    positions = torch.where(mask != 0, torch.arange(mask.numel(), device=mask.device), -1)
    last = torch.full((len(lengths),), -1, dtype=torch.int64, device=mask.device)
    return last.scatter_reduce(0, segment_ids(lengths, mask.device), positions, "amax")
