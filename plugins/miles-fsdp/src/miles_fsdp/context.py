"""Context parallelism: ranks share the tokens of a micro-batch, and in attention share the heads as far as these divide.

Of the T tokens, padded to a multiple of N, context rank r of N holds every N-th one from the r-th on. All that a model does to a
token by itself stays on its rank. For attention N is U times R, where U is the greatest common divisor of N and the query heads.
All-to-all exchanges among U ranks turn ``[B, heads, T / N, D]`` into ``[B, heads / U, T / R, D]`` and back::

    d x = exchange back (d exchange(x))

With R = 1 each rank then computes whole rows for its share of the heads, with the kernels of an unshared run. Otherwise the keys of
R ranks go round, see :mod:`miles_fsdp.ring`. The ranks that exchange lie R apart, so that each has every R-th token after it.

Paper: Jacobs et al., DeepSpeed Ulysses, arXiv:2309.14509. There ranks hold contiguous parts; here tokens are dealt out in turns, as
only response tokens reach the vocabulary head, and contiguous parts would give that work to few ranks. Assumes that attention is
all that mixes tokens. Key and value heads are repeated when U does not divide them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from miles_fsdp.checks import CONTEXT, misfit

if TYPE_CHECKING:
    from miles_core.training.batch import MicroBatch


@dataclass(frozen=True)
class Context:
    """The ranks that share the tokens of a micro-batch.

    Attributes:
        group: their process group.
        rank, size: this one's place among them.
    """

    group: dist.ProcessGroup
    rank: int
    size: int


@dataclass(frozen=True)
class Sharing:
    """How context ranks share attention.

    Attributes:
        exchange: ranks that exchange tokens for heads; None if this one has nobody to do so with.
        ring: ranks that keys and values go round; None likewise.
    """

    exchange: Context | None
    ring: Context | None

    @classmethod
    def of(cls, context: Context, heads: int, device: str) -> Sharing:
        """That of a model with so many query heads. Collective over all ranks of the run."""
        exchanging = math.gcd(context.size, heads)
        going_round = context.size // exchanging
        if going_round == 1:
            return cls(context, None)
        if exchanging == 1:
            return cls(None, context)
        shape = dist.get_world_size() // context.size, exchanging, going_round
        mesh = init_device_mesh(device, shape, mesh_dim_names=("data", "exchange", "ring"))
        return cls(*(Context(mesh.get_group(name), mesh.get_local_rank(name), mesh[name].size()) for name in ("exchange", "ring")))


def context_mesh(device: str, size: int) -> tuple[Context, dist.ProcessGroup]:
    """The context ranks of this one, which follow each other, and the group of its peers that have other rows. Collective.

    Raises:
        UsageError: there are no whole sets of that many ranks (M338).
    """
    world = dist.get_world_size()
    if world % size:
        raise misfit("M338", f"{CONTEXT} {size} does not fit the run", f"{world} ranks are no multiple of it")
    mesh = init_device_mesh(device, (world // size, size), mesh_dim_names=("data", "context"))
    return Context(mesh.get_group("context"), mesh.get_local_rank("context"), size), mesh.get_group("data")


@dataclass(frozen=True)
class Shard:
    """One context rank's part of a micro-batch.

    Attributes:
        whole: the micro-batch, its rows padded to a multiple of the ranks; the padding of a packed row is one more segment.
        tokens, position_ids: this rank's, ``[1, T / N]`` or ``[B, L / N]``.
        logit_index: places among this rank's flattened tokens whose logits predict one of its response tokens, ``[n]``.
        mine: which of the micro-batch's response tokens those are, ``[n]``.
        order: for every response token, its place among what :func:`gathered` collects, ``[N]``.
        most: response tokens of the rank that has most, at least 1.
    """

    whole: MicroBatch
    tokens: torch.Tensor
    position_ids: torch.Tensor
    logit_index: torch.Tensor
    mine: torch.Tensor
    order: torch.Tensor
    most: int

    @classmethod
    def of(cls, batch: MicroBatch, context: Context) -> Shard:
        """The part of this rank."""
        rank, size = context.rank, context.size
        length = batch.tokens.shape[1]
        whole = padded(batch, -length % size)
        share = whole.tokens.shape[1] // size
        row = batch.logit_index.div(length, rounding_mode="floor")
        column = batch.logit_index - row * length
        owner, place = column % size, row * share + column.div(size, rounding_mode="floor")
        counts = torch.bincount(owner, minlength=size)
        most = max(int(counts.max()), 1)
        # Stable: within a rank, response tokens keep the micro-batch's order.
        by_owner = torch.argsort(owner, stable=True)
        starts = counts.cumsum(0) - counts
        order = torch.empty_like(by_owner)
        there = owner[by_owner]
        order[by_owner] = there * most + torch.arange(len(by_owner), device=by_owner.device) - starts[there]
        mine = (owner == rank).nonzero()[:, 0]
        return cls(
            whole=whole,
            tokens=whole.tokens[:, rank::size].contiguous(),
            position_ids=whole.position_ids[:, rank::size].contiguous(),
            logit_index=place[mine],
            mine=mine,
            order=order,
            most=most,
        )


def padded(batch: MicroBatch, padding: int) -> MicroBatch:
    """The micro-batch with this many further tokens in each row. Its ``logit_index`` stays that of the shorter rows."""
    if not padding:
        return batch
    rows, length = batch.tokens.shape
    further = torch.arange(padding, device=batch.tokens.device).expand(rows, -1)
    changes: dict[str, Any] = {"tokens": torch.cat([batch.tokens, torch.zeros_like(further)], 1)}
    if batch.cu_seqlens is None:
        changes["position_ids"] = torch.cat([batch.position_ids, length + further], 1)
    else:
        changes["position_ids"] = torch.cat([batch.position_ids, further], 1)
        changes["cu_seqlens"] = torch.cat([batch.cu_seqlens, batch.cu_seqlens[-1:] + padding])
        changes["max_seqlen"] = max(batch.max_seqlen, padding)
    return dataclasses.replace(batch, **changes)


def heads_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, context: Context
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All tokens of this rank's heads. Collective.

    Args:
        query: ``[B, heads, T / N, D]``; ``key`` and ``value`` have ``[B, key heads, T / N, D]``.

    Returns:
        ``[B, heads / N, T, D]``, and key and value heads of which each serves as many query heads as another.
    """
    repeats = context.size // math.gcd(key.shape[1], context.size)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    batch, _, share, width = query.shape
    parts = [x.reshape(batch, context.size, -1, share, width) for x in (query, key, value)]
    sizes = [part.shape[2] for part in parts]
    # One exchange in place of three: [N, B, heads / N, T / N, D], by the rank that gets it.
    sent = torch.cat(parts, 2).transpose(0, 1)
    received = _Exchange.apply(sent, context.group)  # type: ignore[no-untyped-call]
    # By the rank that sent it, and its tokens are every N-th one.
    q, k, v = received.permute(1, 2, 3, 0, 4).flatten(2, 3).split(sizes, 1)
    return q, k, v


def tokens_of(heads: torch.Tensor, context: Context) -> torch.Tensor:
    """All heads of this rank's tokens: ``[B, T, heads / N, D]`` to ``[B, T / N, heads, D]``. Collective."""
    batch, _, mine, width = heads.shape
    sent = heads.reshape(batch, -1, context.size, mine, width).permute(2, 0, 1, 3, 4)
    received = _Exchange.apply(sent, context.group)  # type: ignore[no-untyped-call]
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3)  # type: ignore[no-any-return]


def gathered(local: torch.Tensor, shard: Shard, context: Context) -> torch.Tensor:
    """What each rank has of its response tokens, ``[n, ...]``, as that of all, ``[N, ...]``. Collective.

    Every rank computes the same scalar from it, so the gradient of a rank's own part is what that part adds to the sum over ranks.
    """
    return _Gather.apply(local, shard.mine, shard.order, shard.most, context)  # type: ignore[no-untyped-call,no-any-return]


class _Exchange(torch.autograd.Function):
    """Part i of ``[N, ...]`` goes to rank i, and part i of the result came from there. It is its own inverse and transpose."""

    @staticmethod
    def forward(ctx: Any, sent: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _exchanged(sent, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _exchanged(grad, ctx.group), None


def _exchanged(sent: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    sent = sent.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received


class _Gather(torch.autograd.Function):
    """Forward: parts of all ranks, padded to the longest, then put in order. Backward: this rank's part of the gradient."""

    @staticmethod
    def forward(
        ctx: Any, local: torch.Tensor, mine: torch.Tensor, order: torch.Tensor, most: int, context: Context
    ) -> torch.Tensor:
        ctx.save_for_backward(mine)
        sent = local.new_zeros((most, *local.shape[1:]))
        sent[: len(local)] = local
        received = local.new_empty((most * context.size, *local.shape[1:]))
        dist.all_gather_into_tensor(received, sent, group=context.group)
        return received.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (mine,) = ctx.saved_tensors
        return grad.index_select(0, mine), None, None, None, None
