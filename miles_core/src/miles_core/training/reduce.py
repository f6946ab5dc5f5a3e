"""The one place where losses and metrics are normalised.

With x the term of token t of sample i, m its mask, M_i the sum of the sample's mask, over all micro-batches and data-parallel ranks
of one optimizer step::

    per sample (default):           sum_i (sum_t m x) / max(M_i, 1) / samples in the step
    --calculate-per-token-loss:     sum_i  sum_t m x / sum_i max(M_i, 1)
    --loss-length-divisor L:        sum_i (sum_t m x) / L / samples in the step        (Dr. GRPO, arXiv:2503.20783)

All are a sum over tokens with constant weights, so that they do not depend on how the step is split.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist

from miles_core.protocols.backend import Parallel
from miles_core.training.rows import StepCount
from miles_core.training.table import RowTable


def sample_weights(table: RowTable) -> np.ndarray:
    """Weights that sum each sample's mean over its unmasked tokens, float32, ``[N + 1]``."""
    means = 1.0 / np.maximum(table.mask_sums, 1.0)
    return (table.mask * np.repeat(means, table.response_lengths)).astype(np.float32)


def token_weights(table: RowTable, count: StepCount, *, per_token: bool, divisor: int | None = None) -> np.ndarray:
    """The weight of every response token in an optimizer step with these global counts, float32, ``[N + 1]``."""
    if per_token:
        return (table.mask / np.float64(max(count.tokens, 1.0))).astype(np.float32)
    if divisor is not None:
        return (table.mask / np.float64(divisor * max(count.samples, 1))).astype(np.float32)
    return (sample_weights(table) / np.float64(max(count.samples, 1))).astype(np.float32)


def row_counts(table: RowTable, *, per_token: bool) -> np.ndarray:
    """What each row contributes to the denominator, float64, ``[B + 1]``."""
    return np.maximum(table.mask_sums, 1.0) if per_token else np.ones(table.size + 1)


def weighted_sum(terms: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of ``weights * terms``, a scalar; terms of weight 0 may be anything, NaN included."""
    return (torch.where(weights != 0, terms, 0) * weights).sum()


def all_sums(sums: Mapping[str, torch.Tensor], parallel: Parallel, device: torch.device) -> dict[str, float]:
    """Sums over the data-parallel ranks, which must all give the same names. Collective."""
    names = sorted(sums)
    if not names:
        return {}
    vector = torch.stack([sums[name].detach().to(device, torch.float64) for name in names])
    return dict(zip(names, reduced(vector, parallel, "sum").tolist(), strict=True))


def reduced(vector: torch.Tensor, parallel: Parallel, how: str) -> torch.Tensor:
    """The ``sum`` or ``max`` of a tensor over the data-parallel ranks, in place. Collective."""
    if parallel.data_group is not None:
        dist.all_reduce(vector, op=dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX, group=parallel.data_group)
    return vector
