"""Context parallelism after Ulysses: ranks share the tokens of a micro-batch, and in attention share the heads instead.

Of the T tokens, a multiple of N, context rank r of N holds every N-th one from the r-th on. All that a model does to a token by
itself stays on its rank. For attention, all-to-all exchanges turn ``[T / N, B, heads, D]`` into ``[T, B, heads / N, D]`` and back::

    d x = exchange back (d exchange(x))

Paper: Jacobs et al., DeepSpeed Ulysses, arXiv:2309.14509. There ranks hold contiguous parts; here tokens are dealt out in turns, as
only response tokens reach the vocabulary head, and contiguous parts would give that work to few ranks. Assumes that N divides the
query heads of a tensor-parallel rank; key and value heads are repeated when N does not divide them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Context:
    """The ranks that share the tokens of a micro-batch, and this one's place among them."""

    group: ProcessGroup
    rank: int
    size: int


def heads_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: Context
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All tokens of this rank's heads. Collective.

    Args:
        query: ``[T / N, B, heads, D]``; ``key`` and ``value`` have ``[T / N, B, key heads, D]``.

    Returns:
        ``[T, B, heads / N, D]``, and key and value heads of which each serves as many query heads as another.
    """
    repeats = context.size // math.gcd(key.shape[2], context.size)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 2), value.repeat_interleave(repeats, 2)
    share, batch, _, width = query.shape
    parts = [x.reshape(share, batch, context.size, -1, width) for x in (query, key, value)]
    # One exchange in place of three: [N, T / N, B, heads / N, D], by the rank that gets it.
    sent = torch.cat(parts, 3).permute(2, 0, 1, 3, 4)
    received = _Exchange.apply(sent, context.group)  # type: ignore[no-untyped-call]
    # By the rank that sent it, and its tokens are every N-th one.
    q, k, v = received.transpose(0, 1).flatten(0, 1).split([part.shape[3] for part in parts], 2)
    return q, k, v


def tokens_of(heads: torch.Tensor, context: Context) -> torch.Tensor:
    """All heads of this rank's tokens: ``[T, B, heads / N, D]`` to ``[T / N, B, heads, D]``. Collective."""
    sent = heads.unflatten(0, (-1, context.size)).transpose(0, 1)  # type: ignore[no-untyped-call]
    received = _Exchange.apply(sent, context.group)  # type: ignore[no-untyped-call]
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Share:
    """Which response tokens of a micro-batch are whose.

    Attributes:
        mine: this rank's, ``[n]``, among the micro-batch's N.
        order: for every response token, its place among what :func:`gathered` collects, ``[N]``.
        most: response tokens of the rank that has most, at least 1.
    """

    mine: torch.Tensor
    order: torch.Tensor
    most: int

    @classmethod
    def of(cls, owner: torch.Tensor, context: Context) -> Share:
        """The share by the rank that holds each response token, ``[N]``."""
        counts = torch.bincount(owner, minlength=context.size)
        most = max(int(counts.max()), 1)
        # Stable: within a rank, response tokens keep the micro-batch's order.
        by_owner = torch.argsort(owner, stable=True)
        there = owner[by_owner]
        order = torch.empty_like(by_owner)
        order[by_owner] = there * most + torch.arange(len(by_owner), device=owner.device) - (counts.cumsum(0) - counts)[there]
        return cls((owner == context.rank).nonzero()[:, 0], order, most)


def gathered(local: torch.Tensor, share: Share, context: Context) -> torch.Tensor:
    """What each rank has of its response tokens, ``[n, ...]``, as that of all, ``[N, ...]``. Collective.

    Every rank computes the same scalar from it, so the gradient of a rank's own part is what that part adds to the sum over ranks.
    """
    return _Gather.apply(local, share, context)  # type: ignore[no-untyped-call,no-any-return]


class _Exchange(torch.autograd.Function):
    """Part i of ``[N, ...]`` goes to rank i, and part i of the result came from there. It is its own inverse and transpose."""

    @staticmethod
    def forward(ctx: Any, sent: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _exchanged(sent, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _exchanged(grad, ctx.group), None


def _exchanged(sent: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    sent = sent.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received


class _Gather(torch.autograd.Function):
    """Forward: parts of all ranks, padded to the longest, then put in order. Backward: this rank's part of the gradient."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, share: Share, context: Context) -> torch.Tensor:
        ctx.save_for_backward(share.mine)
        sent = local.new_zeros((share.most, *local.shape[1:]))
        sent[: len(local)] = local
        received = local.new_empty((share.most * context.size, *local.shape[1:]))
        dist.all_gather_into_tensor(received, sent, group=context.group)
        return received.index_select(0, share.order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (mine,) = ctx.saved_tensors
        return grad.index_select(0, mine), None, None
