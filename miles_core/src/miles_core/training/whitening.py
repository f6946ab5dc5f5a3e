"""Whitening of advantages over a whole rollout, on all ranks.

With m the mask and N its sum, over every response token of the rollout::

    A' = (A - mean) / sqrt(var + 1e-8)        mean = sum(m A) / N        var = sum(m (A - mean)^2) / (N - 1)

As in Hu 2025, REINFORCE++, arXiv:2501.03262, section 3. A rollout has one mean and one variance, however it is divided over ranks
and optimizer steps. Masked tokens are left out of both; what they get is of no consequence.
"""

from __future__ import annotations

import torch

from miles_core.protocols.backend import Parallel
from miles_core.training.reduce import reduced

EPSILON = 1e-8


def whitened(advantages: torch.Tensor, mask: torch.Tensor, parallel: Parallel, device: torch.device) -> torch.Tensor:
    """Advantages with mean 0 and variance 1 over the unmasked tokens of all ranks, ``[N]``. Collective.

    Advantages that are all equal become exactly 0, and so does a single one, which has no variance.
    """
    used = mask != 0
    values = torch.where(used, advantages, 0).to(torch.float64)
    weights = mask.to(torch.float64)
    count, total = _sums(torch.stack([weights.sum(), (weights * values).sum()]), parallel, device)
    least, most = _bounds(values[used], parallel, device)
    if count < 2 or least == most:
        return torch.zeros_like(advantages)
    centred = torch.where(used, values - total / count, 0)
    (square,) = _sums((weights * centred.square()).sum().reshape(1), parallel, device)
    scaled: torch.Tensor = centred * (square / (count - 1) + EPSILON) ** -0.5
    return scaled.to(advantages.dtype)


def _sums(vector: torch.Tensor, parallel: Parallel, device: torch.device) -> list[float]:
    found: list[float] = reduced(vector.to(device), parallel, "sum").tolist()
    return found


def _bounds(values: torch.Tensor, parallel: Parallel, device: torch.device) -> tuple[float, float]:
    """Smallest and largest over all ranks."""
    nothing = torch.tensor(-torch.inf, dtype=torch.float64)
    ends = torch.stack([-values.min(), values.max()]) if values.numel() else torch.stack([nothing, nothing])
    least, most = reduced(ends.to(device), parallel, "max").tolist()
    return -least, most
