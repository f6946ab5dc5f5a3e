"""Ring attention: ranks keep the queries of their tokens, and keys and values go round.

Of the T tokens, ring rank r of R holds every R-th one from the r-th on. In step j it has the keys of rank ``r - j (mod R)``, which
lie j tokens and a multiple of R before its own, and merges what its queries see of them into what they saw before::

    lse = log(exp(lse) + exp(lse_j))        out = out exp(lse_old - lse) + out_j exp(lse_j - lse)

Backward, keys and values go round again, and the sums of their gradients with them.

As every rank holds tokens of all parts of a row, causal masks give all ranks the same work in every step: within a segment, this
rank's i-th query sees the first i of the other's keys, counted from the first query that sees one. So each step is ordinary causal
attention between segments of equal length, and a sliding window of W tokens is one of ``(W - 1 - j) // R + 1`` there.

Papers: Liu et al., Ring Attention, arXiv:2310.01889; Brandon et al., Striped Attention, arXiv:2311.09431, for how tokens are dealt
out. Queries, keys and values are in the precision of the computation, as they travel; sums and normalisers are float32.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from miles_fsdp.attention import Packing
from miles_fsdp.blocks import Scores, block_backward, block_forward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from miles_fsdp.context import Context


@dataclass(frozen=True)
class Block:
    """What this rank's queries see of the keys of one rank.

    Attributes:
        queries, keys: places of those that take part, ``[n]``; None is all.
        packing: their segments, whose i-th query sees the keys up to the i-th.
    """

    queries: torch.Tensor | None
    keys: torch.Tensor | None
    packing: Packing


@dataclass(frozen=True)
class Ring:
    """A packed row that ring ranks share.

    Attributes:
        context: the ranks.
        blocks: by step; None where this rank sees nothing.
    """

    context: Context
    blocks: tuple[Block | None, ...]

    @classmethod
    def of(cls, bounds: Sequence[int], context: Context, device: torch.device, *, varlen: bool) -> Ring:
        """The ring of a row whose segments lie between ``bounds``, from 0 to its tokens, which are a multiple of the ranks."""
        rank, size = context.rank, context.size
        blocks: list[Block | None] = []
        for step in range(size):
            other = (rank - step) % size
            queries, keys, lengths = [], [], []
            for start, stop in itertools.pairwise(bounds):
                # A segment's first token on either rank, and those before it in the segment.
                mine, theirs = (rank - start) % size, (other - start) % size
                # When their first token comes after mine, my first query sees none of theirs.
                skipped = int(theirs > mine)
                length = max(-(-(stop - start - mine) // size) - skipped, 0)
                if length > 0:
                    queries.append(torch.arange(length) + (start + mine) // size + skipped)
                    keys.append(torch.arange(length) + (start + theirs) // size)
                    lengths.append(length)
            if not lengths:
                blocks.append(None)
                continue
            packing = Packing.between([0, *itertools.accumulate(lengths)], device, varlen=varlen)
            count = bounds[-1] // size
            blocks.append(Block(_unless_all(queries, count, device), _unless_all(keys, count, device), packing))
        return cls(context, tuple(blocks))


def _unless_all(ranges: list[torch.Tensor], count: int, device: torch.device) -> torch.Tensor | None:
    places = torch.cat(ranges)
    return None if len(places) == count else places.to(device)


def ring_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ring: Ring, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Causal attention within the segments of a row that ring ranks share. Collective, forward and backward.

    Args:
        query: of this rank's tokens, ``[B, heads, T / R, D]``; ``key`` and ``value`` have ``[B, key heads, T / R, D]``. The row is
            all of B laid end to end.
        ring: the row.
        scaling: of the scores; None is ``D ** -0.5``.
        window: tokens that a query sees, itself included; None is all.

    Returns:
        ``[B, T / R, heads, D]``.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    batch, _, share, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    out: torch.Tensor = _RingAttention.apply(q, torch.stack((k, v)), ring, scale, window)  # type: ignore[no-untyped-call]
    return out.view(batch, share, *out.shape[1:])


class _RingAttention(torch.autograd.Function):
    """Of ``[n, heads, D]`` queries, and keys and values in one tensor, ``[2, n, key heads, D]``."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, pair: torch.Tensor, ring: Ring, scale: float, window: int | None) -> torch.Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        out, lse = query.new_zeros(query.shape, dtype=wide), query.new_full(query.shape[:2], float("-inf"), dtype=wide)
        held, steps = pair, _steps(ring, window)
        for step in range(steps):
            coming = _Message(held, ring.context, 1) if step + 1 < steps else None
            block = ring.blocks[step]
            if block is not None:
                scores = Scores(block.packing, scale, _window(ring, window, step))
                new, normaliser = block_forward(_taken(query, block.queries), *_both(held, block), scores)
                _merge(out, lse, new.to(wide), normaliser, block.queries)
            if coming is not None:
                held = coming.arrived()
        result = out.to(query.dtype)
        ctx.save_for_backward(query, pair, result, lse)
        ctx.ring, ctx.scale, ctx.window = ring, scale, window
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, pair, out, lse = ctx.saved_tensors
        ring, grad = ctx.ring, grad.contiguous()
        query_grad = torch.zeros_like(query, dtype=lse.dtype)
        sums = torch.zeros_like(pair, dtype=lse.dtype)
        held, steps = pair, _steps(ring, ctx.window)
        going: _Message | None = None
        for step in range(steps):
            coming = _Message(held, ring.context, 1) if step + 1 < steps else None
            block = ring.blocks[step]
            if block is not None:
                scores = Scores(block.packing, ctx.scale, _window(ring, ctx.window, step))
                g, q, o, n = (_taken(x, block.queries) for x in (grad, query, out, lse))
                parts = block_backward(g, q, *_both(held, block), o, n, scores)
            if going is not None:
                sums = going.arrived()
            if block is not None:
                for whole, places, part in zip((query_grad, *sums), (block.queries, block.keys, block.keys), parts, strict=True):
                    _add(whole, places, part)
            # The sums of a rank's keys follow them, and after the last step go home.
            going = _Message(sums, ring.context, 1 if step + 1 < steps else 1 - steps)
            if coming is not None:
                held = coming.arrived()
        assert going is not None
        return query_grad.to(query.dtype), going.arrived().to(pair.dtype), None, None, None


class _Message:
    """A tensor on its way to the rank ``by`` places on, and the like one that comes from as many places back."""

    def __init__(self, sent: torch.Tensor, context: Context, by: int) -> None:
        self._received = sent
        self._works: list[dist.Work] = []
        by %= context.size
        if by:
            # Kept until it has arrived: whoever sent it may let go of it before.
            self._sent = sent.contiguous()
            self._received = torch.empty_like(self._sent)
            to, source = ((context.rank + step) % context.size for step in (by, -by))
            operations = [
                dist.P2POp(dist.isend, self._sent, group=context.group, group_peer=to),
                dist.P2POp(dist.irecv, self._received, group=context.group, group_peer=source),
            ]
            self._works = dist.batch_isend_irecv(operations)

    def arrived(self) -> torch.Tensor:
        """What came, once it has come."""
        for work in self._works:
            work.wait()
        return self._received


def _steps(ring: Ring, window: int | None) -> int:
    """The keys of step j lie at least j tokens back."""
    return ring.context.size if window is None else min(ring.context.size, window)


def _window(ring: Ring, window: int | None, step: int) -> int | None:
    return None if window is None else (window - 1 - step) // ring.context.size + 1


def _both(pair: torch.Tensor, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    key, value = (_taken(x, block.keys) for x in pair)
    return key, value


def _taken(tokens: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    return tokens if places is None else tokens.index_select(0, places)


def _add(whole: torch.Tensor, places: torch.Tensor | None, part: torch.Tensor) -> None:
    if places is None:
        whole.add_(part)
    else:
        whole.index_add_(0, places, part.to(whole.dtype))


def _merge(out: torch.Tensor, lse: torch.Tensor, new: torch.Tensor, normaliser: torch.Tensor, places: torch.Tensor | None) -> None:
    """Take what queries saw of one block into what they saw of others, in place."""
    before, old = _taken(lse, places), _taken(out, places)
    after = torch.logaddexp(before, normaliser)
    merged = old * (before - after).exp()[..., None] + new * (normaliser - after).exp()[..., None]
    if places is None:
        out.copy_(merged)
        lse.copy_(after)
    else:
        out.index_copy_(0, places, merged)
        lse.index_copy_(0, places, after)
