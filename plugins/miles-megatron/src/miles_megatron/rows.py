"""A micro-batch as one rank computes it: padded to the parallel sizes, with this context rank's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from miles_core.numerics.varlen import runs_there
from miles_megatron.attention import Packing
from miles_megatron.context import Share

if TYPE_CHECKING:
    from miles_core.training.batch import MicroBatch
    from miles_megatron.context import Context


@dataclass(frozen=True)
class Ahead:
    """What a layer of multi-token prediction sees and predicts: the k-th one, of each token, those k and k + 1 further on.

    Rows and segments are each their own: what lies behind their end is neither seen nor predicted.

    Attributes:
        tokens: that it sees, ``[B, L / N]``; 0 behind the end.
        index: places among this rank's flattened tokens from which it predicts an unmasked response token, ``[n]``.
        targets: those response tokens, ``[n]``.
        weight: their loss masks, ``[n]``.
    """

    tokens: torch.Tensor
    index: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, batch: MicroBatch, tokens: torch.Tensor, positions: torch.Tensor, distance: int, context: Context | None) -> Ahead:
        """This rank's part.

        Args:
            tokens, positions: of the micro-batch, padded, ``[B, L]``.
            distance: k.
        """
        rank, size = (0, 1) if context is None else (context.rank, context.size)
        inside = positions.roll(-distance, 1) == positions + distance
        seen = torch.where(inside, tokens.roll(-distance, 1), 0)
        mask = batch.data.get("mask")
        weight = torch.ones_like(batch.targets, dtype=torch.float32) if mask is None else mask.float()
        row = batch.logit_index.div(batch.tokens.shape[1], rounding_mode="floor")
        column = batch.logit_index - row * batch.tokens.shape[1] - distance
        kept = (weight != 0) & (batch.position_ids.flatten()[batch.logit_index] >= distance) & (column % size == rank)
        place = row * (tokens.shape[1] // size) + column.div(size, rounding_mode="floor")
        return cls(seen[:, rank::size].contiguous(), place[kept], batch.targets[kept], weight[kept])


@dataclass(frozen=True)
class Rows:
    """This rank's part of a micro-batch of B rows of L tokens, where N context ranks share them.

    Attributes:
        batch: the micro-batch.
        tokens, position_ids: ``[B, L / N]``.
        logit_index: places among this rank's flattened tokens whose logits predict one of its response tokens, ``[n]``.
        targets: those response tokens, ``[n]``.
        packing: of the whole row; None for padded rows.
        share: whose the response tokens are; None when this rank has all.
        padding: tokens at the end of each row that the micro-batch does not have.
        ahead: what the first layers of multi-token prediction see and predict.
    """

    batch: MicroBatch
    tokens: torch.Tensor
    position_ids: torch.Tensor
    logit_index: torch.Tensor
    targets: torch.Tensor
    packing: Packing | None
    share: Share | None
    padding: int
    ahead: tuple[Ahead, ...] = ()

    @classmethod
    def of(cls, batch: MicroBatch, *, length: int, context: Context | None, compute: torch.dtype, ahead: int = 0) -> Rows:
        """This rank's part.

        Args:
            length: tokens to pad each row to; the padding of a packed row is one more segment.
            context: the ranks that share the tokens, whose number divides ``length``; None if this one has all.
            compute: precision of the computation, by which kernels are chosen.
            ahead: layers of multi-token prediction that run.
        """
        tokens, positions, bounds, longest = batch.tokens, batch.position_ids, batch.cu_seqlens, batch.max_seqlen
        columns = tokens.shape[1]
        padding = length - columns
        if padding:
            behind = torch.arange(padding, device=tokens.device).expand(len(tokens), -1)
            tokens = torch.cat([tokens, torch.zeros_like(behind)], 1)
            positions = torch.cat([positions, behind if bounds is not None else columns + behind], 1)
            if bounds is not None:
                bounds, longest = torch.cat([bounds, bounds[-1:] + padding]), max(longest, padding)
        varlen = runs_there(tokens.device, compute)
        packing = None if bounds is None else Packing.of(bounds, longest, varlen=varlen)
        further = tuple(Ahead.of(batch, tokens, positions, k, context) for k in range(1, ahead + 1))
        row = batch.logit_index.div(columns, rounding_mode="floor")
        column = batch.logit_index - row * columns
        if context is None:
            index = row * tokens.shape[1] + column
            return cls(batch, tokens, positions, index, batch.targets, packing, None, padding, further)
        size = context.size
        share = Share.of(column % size, context)
        places = row * (tokens.shape[1] // size) + column.div(size, rounding_mode="floor")
        tokens, positions = (x[:, context.rank :: size].contiguous() for x in (tokens, positions))
        return cls(batch, tokens, positions, places[share.mine], batch.targets[share.mine], packing, share, padding, further)
