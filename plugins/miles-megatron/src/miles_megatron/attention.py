"""Causal attention over packed or padded rows: the core attention of megatron-core's layers, on PyTorch's kernels alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from miles_core.numerics.varlen import variable_length
from miles_megatron.context import Context, heads_of, tokens_of
from miles_megatron.models.norm import RMSNorm
from miles_megatron.rotary import turned

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Packing:
    """How a packed row of T tokens divides into segments.

    Attributes:
        cu_seqlens, max_seqlen: for variable-length kernels; as in :class:`miles_core.training.batch.MicroBatch`.
        groups: for kernels that need padding, segments of like length together: gather positions ``[B * L]``, B and L.
        restore: for each of the T tokens, its place in the groups' padded tokens laid end to end.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    groups: tuple[tuple[torch.Tensor, int, int], ...] = ()
    restore: torch.Tensor | None = None

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor, max_seqlen: int, *, varlen: bool) -> Packing:
        """The packing by its bounds, for variable-length kernels or for padded ones."""
        if varlen:
            return cls(cu_seqlens, max_seqlen)
        bounds = cu_seqlens.tolist()
        # Lengths within a factor of two share a group: one batched call each, and at most half of it is padding.
        members: dict[int, list[tuple[int, int]]] = {}
        for start, stop in itertools.pairwise(bounds):
            if stop > start:
                members.setdefault((stop - start - 1).bit_length(), []).append((start, stop))
        restore = torch.empty(bounds[-1], dtype=torch.int64)
        groups, offset = [], 0
        for segments in members.values():
            starts, stops = torch.tensor(segments).T[:, :, None]
            length = int((stops - starts).max())
            places = starts + torch.arange(length)
            real = places < stops
            restore[places[real]] = torch.arange(offset, offset + real.numel()).view_as(real)[real]
            groups.append((torch.minimum(places, stops - 1).flatten().to(cu_seqlens.device), len(segments), length))
            offset += real.numel()
        return cls(cu_seqlens, max_seqlen, tuple(groups), restore.to(cu_seqlens.device))


class Packings(dict[int, Packing | None]):
    """The packings of a pass, by the number that stands in the place of the attention mask; None is of padded rows.

    Layers that the backward pass recomputes get that number again, whichever micro-batch came last.

    Attributes:
        current: the number that a layer's attention got last.
        angles: cosines and sines of a micro-batch's rotary angles, ``[2, T, B, 1, D]`` in float32, by its number.
    """

    current = 0
    angles: Callable[[int], torch.Tensor]


class PackedAttention(torch.nn.Module):
    """Causal softmax attention within each segment of a packed row, or of right-padded rows; no dropout, no mask.

    A segment's own tokens are all that its queries see, and right padding lies in every real token's future. With context
    parallelism the ranks exchange tokens for heads, see :mod:`miles_megatron.context`. Queries and keys are rotated here, by their
    own positions, so that one compiled loop does it.

    Args:
        softmax_scale: of the scores; None is ``D ** -0.5``.
        pg_collection: megatron-core's process groups, of which ``cp`` is used.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__()
        del attn_mask_type, attention_type, attention_dropout, cp_comm_type
        self.config = config
        self.layer_number = layer_number
        self.scale = softmax_scale
        group: ProcessGroup | None = getattr(pg_collection, "cp", None)
        self.context = Context(group, group.rank(), group.size()) if group is not None and group.size() > 1 else None
        self.packings = Packings()
        self.compiled = False
        self.norms: tuple[RMSNorm, RMSNorm] | None = None

    def fuse(self, query_norm: torch.nn.Module | None, key_norm: torch.nn.Module | None) -> None:
        """Compile the loops here, and take over the norms of queries and keys, which then read them no more."""
        self.compiled = True
        if isinstance(query_norm, RMSNorm) and isinstance(key_norm, RMSNorm):
            query_norm.deferred = key_norm.deferred = True
            self.norms = query_norm, key_norm

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Attention of this rank's heads, ``[T, B, heads * D]``.

        Args:
            query: ``[T, B, heads, D]``; ``key`` and ``value`` have ``[T, B, key heads, D]``. B is 1 when packed.
            attention_mask: the micro-batch's number among :attr:`packings`, in host memory.
            attn_mask_type, attention_bias, packed_seq_params: unused.
        """
        del attn_mask_type, attention_bias, packed_seq_params
        self.packings.current = int(attention_mask)
        packing = self.packings[self.packings.current]
        angles = self.packings.angles(self.packings.current)
        interleaved = self.config.rotary_interleaved
        query, key = turned(query, key, angles, interleaved=interleaved, norms=self.norms, fused=self.compiled)
        if self.context is not None:
            query, key, value = heads_of(query, key, value, self.context)
        attended = self._padded(query, key, value) if packing is None else self._packed(query, key, value, packing)
        if self.context is not None:
            attended = tokens_of(attended, self.context)
        return attended.flatten(2, 3)

    def _padded(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        return _causal(q, k, v, self.scale).permute(2, 0, 1, 3)

    def _packed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing) -> torch.Tensor:
        if packing.restore is None:
            q, k, v = query[:, 0], key[:, 0], value[:, 0]
            return variable_length(q, k, v, packing.cu_seqlens, packing.max_seqlen, scale=self.scale)[:, None]  # type: ignore[no-any-return]
        parts = []
        for gather, rows, length in packing.groups:
            picked = (x[:, 0].index_select(0, gather) for x in (query, key, value))
            q, k, v = (x.view(rows, length, *x.shape[1:]).transpose(1, 2) for x in picked)
            parts.append(_causal(q, k, v, self.scale).transpose(1, 2).flatten(0, 1))
        padded = parts[0] if len(parts) == 1 else torch.cat(parts)
        return padded.index_select(0, packing.restore)[:, None]


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
    """``[B, heads, L, D]``, and key and value with fewer heads."""
    shared = query.shape[1] != key.shape[1]
    if shared and query.device.type == "cpu":
        # PyTorch's fused CPU kernel takes no grouped heads; the fallback would build the whole score matrix.
        groups = query.shape[1] // key.shape[1]
        key, value, shared = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), False
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared)
