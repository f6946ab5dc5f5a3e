"""Attention of which every query has the same bits in every batch, packing and cache.

With scores ``s_k = (scaling * q) . k`` of the keys that a query sees, and m their maximum::

    p_k = exp(s_k - m)        output = sum_k p_k v_k / sum_k p_k

Keys are counted from the start of their own sequence and taken in blocks of :data:`KEYS`. Within a block both sums have one
shape and so one order; blocks are added one after the other. A key that is not seen has ``p_k`` exactly 0, and so has a whole
block of them: it does not matter how many there are behind the last one that is seen. The maximum is exact in any order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from miles_core.numerics.product import ROWS, products

KEYS = 64


def invariant_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float | None = None) -> Tensor:
    """Softmax attention with a mask. The gradient is that of PyTorch's fused attention.

    Args:
        query: ``[B, heads, T, D]``.
        key: ``[B, groups, L, D]``; column k of every row must be the k-th token of its sequence.
        value: ``[B, groups, L, E]``, finite also where it is not seen.
        visible: which keys each query sees, bool, ``[B, T, L]`` or ``[1, T, L]``.
        scaling: of the scores; None is ``D ** -0.5``.

    Returns:
        ``[B, heads, T, E]``; 0 for a query that sees nothing.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    found: Tensor = _Attention.apply(query, key, value, visible, scaling)  # type: ignore[no-untyped-call]
    return found


def causal(length: int, window: int | None = None, device: torch.device | None = None) -> Tensor:
    """The mask of sequences that start at column 0, bool ``[1, T, T]``; ``window`` counts the query's own token."""
    columns = torch.arange(length, device=device)
    back = columns[:, None] - columns
    seen = back >= 0
    return (seen if window is None else seen & (back < window))[None]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value, visible)
        ctx.scaling = scaling
        return _forward(query, key, value, visible, scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, visible = ctx.saved_tensors
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
            q, k, v = leaves
            shared = q.shape[1] // k.shape[1]
            if shared > 1:
                k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], scale=ctx.scaling)
        return *torch.autograd.grad(out, leaves, grad), None, None


def _forward(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float) -> Tensor:
    batch, heads, length, dim = query.shape
    groups = key.shape[1]
    shared, pairs = heads // groups, batch * groups
    # Heads that share keys become queries of one head, a token's behind one another: [B * groups, T * shared, D].
    rows = (query * scaling).view(batch, groups, shared, length, dim).transpose(2, 3).reshape(pairs, length * shared, dim)
    count = rows.shape[1]
    rows = F.pad(rows, (0, 0, 0, -count % ROWS))
    keys, values = _blocks(key), _blocks(value)
    spare = keys.shape[0] * KEYS - visible.shape[2]
    visible = F.pad(visible, (0, spare))
    last = _last_seen(visible)
    out = rows.new_empty(pairs, rows.shape[1], value.shape[-1])
    for start in range(0, rows.shape[1], ROWS):
        tokens = [min(row, count - 1) // shared for row in range(start, start + ROWS)]
        blocks = max(1, math.ceil((max(last[token] for token in tokens) + 1) / KEYS))
        seen = visible[:, tokens, : blocks * KEYS].reshape(-1, ROWS, blocks, KEYS)
        # [blocks, B or 1, 1, ROWS, KEYS]
        seen = seen.permute(2, 0, 1, 3)[:, :, None]
        out[:, start : start + ROWS] = _rows(rows[:, start : start + ROWS], keys[:blocks], values[:blocks], seen, batch, groups)
    return out[:, :count].reshape(batch, groups, length, shared, -1).transpose(2, 3).reshape(batch, heads, length, -1)


def _rows(rows: Tensor, keys: Tensor, values: Tensor, seen: Tensor, batch: int, groups: int) -> Tensor:
    """``[pairs, ROWS, E]`` of queries ``[pairs, ROWS, D]`` and blocks of keys ``[blocks, pairs, KEYS, D]``."""
    blocks, pairs = keys.shape[:2]
    queries = rows.expand(blocks, -1, -1, -1).reshape(blocks * pairs, ROWS, -1)
    scores = products(queries, keys.flatten(0, 1).transpose(1, 2))
    scores = scores.view(blocks, batch, groups, ROWS, KEYS).masked_fill_(~seen, -math.inf).view(blocks, pairs, ROWS, KEYS)
    largest = scores.amax(-1).amax(0)
    largest.masked_fill_(largest == -math.inf, 0.0)
    weights = scores.sub_(largest[:, :, None]).exp_()
    parts = products(weights.flatten(0, 1), values.flatten(0, 1)).view(blocks, pairs, ROWS, -1)
    totals = weights.sum(-1)
    found, total = torch.zeros_like(parts[0]), torch.zeros_like(totals[0])
    for block in range(blocks):
        found += parts[block]
        total += totals[block]
    return found / total.masked_fill_(total == 0, 1.0)[:, :, None]


def _blocks(states: Tensor) -> Tensor:
    """``[B, groups, L, D]`` to contiguous ``[blocks, B * groups, KEYS, D]``, filled up with zeros."""
    batch, groups, length, dim = states.shape
    blocks = -(-length // KEYS)
    whole = states.new_empty(blocks, batch * groups, KEYS, dim)
    full = length // KEYS
    if full:
        head = states[:, :, : full * KEYS].reshape(batch * groups, full, KEYS, dim)
        whole[:full] = head.transpose(0, 1)
    if full < blocks:
        whole[full, :, : length - full * KEYS] = states[:, :, full * KEYS :].reshape(batch * groups, -1, dim)
        whole[full, :, length - full * KEYS :] = 0
    return whole


def _last_seen(visible: Tensor) -> list[int]:
    """The last column that a token sees in any sequence; -1 where it sees nothing."""
    seen = visible.any(0)
    columns = torch.arange(1, seen.shape[1] + 1, device=seen.device)
    return (torch.where(seen, columns, 0).amax(1) - 1).tolist()  # type: ignore[no-any-return]
