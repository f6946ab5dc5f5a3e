"""Causal attention within segments whose softmax is not finished: it hands out its normaliser, so that parts can be merged.

For a query q that sees the keys of block b, with scores s = scaling * q k::

    lse_b = log sum exp(s)              out_b = sum exp(s - lse_b) v

With the whole softmax's ``lse`` and ``out`` over all blocks, a block's part of the gradient needs nothing of the other blocks::

    p = exp(s - lse)    ds = p * (g v - g out)    dq += scaling * ds k    dk += scaling * ds q    dv += p g

Derivation: Dao et al., FlashAttention, arXiv:2205.14135, appendix B. Tensors are ``[n, heads, D]`` here, without a batch dimension,
and ``lse`` is ``[n, heads]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from miles_core.numerics.varlen import GROUPS_HEADS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from miles_fsdp.attention import Packing

ROWS = 1024
"""Queries of a segment whose scores exist at a time where no variable-length kernel runs."""

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Scores(NamedTuple):
    """How scores come from queries and keys of like segments.

    Attributes:
        packing: the segments.
        scaling: of the scores.
        window: keys that a query sees, the one at its own place included; None is all.
    """

    packing: Packing
    scaling: float
    window: int | None


def block_forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """``out``, in the precision of the kernel, and ``lse`` in float32 (float64 for float64 tensors)."""
    return (_written_forward if scores.packing.restore is not None else _kernel_forward)(query, key, value, scores)


def block_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scores: Scores,
) -> Gradients:
    """This block's part of the gradients of query, key and value, from the whole softmax's ``grad``, ``out`` and ``lse``."""
    run = _written_backward if scores.packing.restore is not None else _kernel_backward
    return run(grad, query, key, value, out, lse, scores)


def _kernel_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores
) -> tuple[torch.Tensor, torch.Tensor]:
    packing, bounds = scores.packing, _window(scores)
    key, value = _like(query, key), _like(query, value)
    cu, most = packing.cu_seqlens, packing.max_seqlen
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, cu, cu, most, most, 0.0, scores.window is None, False, scale=scores.scaling, **bounds
    )
    return out, lse.transpose(0, 1)


def _kernel_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scores: Scores,
) -> Gradients:
    packing, bounds = scores.packing, _window(scores)
    heads = key.shape[1]
    key, value = _like(query, key), _like(query, value)
    cu, most = packing.cu_seqlens, packing.max_seqlen
    # Without dropout the kernel draws nothing, and does not look at the state of the generator.
    random, unused = torch.zeros(2, dtype=torch.uint64, device=query.device), torch.empty(0, device=query.device)
    lse = lse.transpose(0, 1).contiguous()
    saved = query, key, value, out, lse, cu, cu, most, most, 0.0, scores.window is None, random, unused
    dq, dk, dv = torch.ops.aten._flash_attention_backward(grad, *saved, scale=scores.scaling, **bounds)
    if dk.shape[1] != heads:
        dk, dv = (x.unflatten(1, (heads, -1)).float().sum(2) for x in (dk, dv))
    return dq, dk, dv


def _like(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Keys with as many heads as the kernel wants."""
    return key if GROUPS_HEADS else key.repeat_interleave(query.shape[1] // key.shape[1], 1)


def _window(scores: Scores) -> dict[str, int | None]:
    if scores.window is None:
        return {"window_size_left": -1, "window_size_right": 0}
    return {"window_size_left": scores.window - 1, "window_size_right": 0}


def _written_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores
) -> tuple[torch.Tensor, torch.Tensor]:
    packing = scores.packing
    assert packing.restore is not None
    heads = key.shape[1]
    outs, normalisers = [], []
    for q, k, v in zip(*(_segments(x, packing) for x in (query, key, value)), strict=True):
        q = q.unflatten(2, (heads, -1))
        out, normaliser = torch.empty_like(q), q.new_empty(q.shape[:-1])
        for part in _parts(q.shape[1]):
            s = _scores(q[:, part], k, part, scores)
            normaliser[:, part] = lse = torch.logsumexp(s, -1)
            p = s.sub_(lse[..., None]).exp_()
            out[:, part] = torch.einsum("rqhgk,rkhd->rqhgd", p, v[:, : part.stop])
        outs.append(out.flatten(2, 3).flatten(0, 1))
        normalisers.append(normaliser.flatten(2, 3).flatten(0, 1))
    return torch.cat(outs).index_select(0, packing.restore), torch.cat(normalisers).index_select(0, packing.restore)


def _written_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scores: Scores,
) -> Gradients:
    packing = scores.packing
    assert packing.restore is not None
    heads = key.shape[1]
    delta = (grad * out).sum(-1, dtype=lse.dtype)
    found: tuple[list[torch.Tensor], ...] = ([], [], [])
    # Padded queries have no gradient, and so give none.
    for q, k, v, g, n, d in zip(*(_segments(x, packing) for x in (query, key, value, grad, lse, delta)), strict=True):
        q, g, n, d = (x.unflatten(2, (heads, -1)) for x in (q, g, n, d))
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for part in _parts(q.shape[1]):
            seen = slice(0, part.stop)
            p = _scores(q[:, part], k, part, scores).sub_(n[:, part, ..., None]).exp_()
            dv[:, seen] += torch.einsum("rqhgk,rqhgd->rkhd", p, g[:, part])
            ds = torch.einsum("rqhgd,rkhd->rqhgk", g[:, part], v[:, seen]).sub_(d[:, part, ..., None]).mul_(p).mul_(scores.scaling)
            dq[:, part] = torch.einsum("rqhgk,rkhd->rqhgd", ds, k[:, seen])
            dk[:, seen] += torch.einsum("rqhgk,rqhgd->rkhd", ds, q[:, part])
        for each, of in zip(found, (dq.flatten(2, 3), dk, dv), strict=True):
            each.append(of.flatten(0, 1))
    dq, dk, dv = (torch.cat(each).index_select(0, packing.restore) for each in found)
    return dq, dk, dv


def _scores(query: torch.Tensor, key: torch.Tensor, part: slice, scores: Scores) -> torch.Tensor:
    """``[rows, queries, key heads, group, keys]`` of the queries in ``part``, ``-inf`` where a key is not seen."""
    s = torch.einsum("rqhgd,rkhd->rqhgk", query, key[:, : part.stop]).mul_(scores.scaling)
    places = torch.arange(part.stop, device=s.device)
    back = places[part, None] - places
    hidden = back < 0 if scores.window is None else (back < 0) | (back >= scores.window)
    return s.masked_fill_(hidden[:, None, None], float("-inf"))


def _parts(length: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, length)) for start in range(0, length, ROWS))


def _segments(tokens: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    """``[n, ...]`` as ``[segments, length, ...]`` for each group, padded with zeros, in at least float32."""
    assert packing.restore is not None
    sizes = [rows * length for _, rows, length in packing.groups]
    wide = torch.promote_types(tokens.dtype, torch.float32)
    padded = tokens.new_zeros((sum(sizes), *tokens.shape[1:]), dtype=wide)
    padded[packing.restore] = tokens.to(wide)
    parts = torch.split(padded, sizes)
    return [part.view(rows, length, *part.shape[1:]) for part, (_, rows, length) in zip(parts, packing.groups, strict=True)]
