"""Attention over packed rows: which implementation to use, and our own for where flash-attn is absent."""

from __future__ import annotations

import functools
import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.utils import is_flash_attn_2_available

from miles_core.errors import UsageError
from miles_core.numerics import varlen
from miles_core.numerics.attention import causal, invariant_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from miles_core.training.batch import MicroBatch

OWNER = "miles-fsdp"
PACKED = "miles_packed"
"""Name of our implementation in transformers' ``AttentionInterface``."""
INVARIANT = "miles_packed_invariant"
"""The same for ``--true-on-policy-mode``, by :func:`miles_core.numerics.attention.invariant_attention`."""
SHARED = "miles_packed_shared"
"""The same for ranks that share the tokens of a row, see :mod:`miles_fsdp.shared_attention`."""

Kernel: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None, int | None], torch.Tensor]"
"""Causal attention of rows that start at column 0: query, key, value, scaling, window."""

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packing:
    """How a packed row of T tokens divides into segments.

    Attributes:
        cu_seqlens, max_seqlen: for variable-length kernels; as in :class:`MicroBatch`.
        groups: for kernels that need padding, segments of like length together: gather positions ``[B * L]``, B and L.
        restore: for each of the T tokens, its place in the groups' padded tokens laid end to end.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    groups: tuple[tuple[torch.Tensor, int, int], ...] = ()
    restore: torch.Tensor | None = None

    @classmethod
    def of(cls, batch: MicroBatch, *, varlen: bool) -> Packing:
        """The packing of a ``thd`` micro-batch, for variable-length kernels or for padded ones."""
        assert batch.cu_seqlens is not None
        if varlen:
            return cls(batch.cu_seqlens, batch.max_seqlen)
        return cls.between(batch.cu_seqlens.tolist(), batch.tokens.device, varlen=False)

    @classmethod
    def between(cls, bounds: Sequence[int], device: torch.device, *, varlen: bool) -> Packing:
        """The packing of a row whose segments lie between ``bounds``, the first of which is 0."""
        longest = max(stop - start for start, stop in itertools.pairwise(bounds))
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
        if varlen:
            return cls(cu_seqlens, longest)
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
            groups.append((torch.minimum(places, stops - 1).flatten().to(device), len(segments), length))
            offset += real.numel()
        return cls(cu_seqlens, longest, tuple(groups), restore.to(device))


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    kernel: Kernel | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal self-attention within each segment of a packed row, or of right-padded rows when ``packing`` is None.

    It needs no mask: a segment's own tokens are all that its queries see, and right padding lies in every real token's future.

    Args:
        module: the attention module, unused.
        query: ``[B, heads, T, D]``; ``key`` and ``value`` have ``[B, key heads, T, D]``. B is 1 when packed.
        attention_mask: unused; transformers makes none for this implementation.
        scaling: of the scores; None is ``D ** -0.5``.
        sliding_window: tokens that a query sees, itself included.
        packing: the segments of the packed row.
        kernel: attention of padded rows; None is PyTorch's.

    Returns:
        ``[B, T, heads, D]``, and None for the attention weights.
    """
    kernel = kernel or _causal
    if packing is None:
        return kernel(query, key, value, scaling, sliding_window).transpose(1, 2), None
    if packing.restore is None:
        return _variable_length(query, key, value, scaling, sliding_window, packing), None
    return _by_groups(query, key, value, scaling, sliding_window, packing, kernel), None


# A compiler would make a program for every number and size of groups.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _by_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    packing: Packing,
    kernel: Kernel,
) -> torch.Tensor:
    assert packing.restore is not None
    parts = []
    for gather, rows, length in packing.groups:
        q, k, v = (_segments(x[0], gather, rows, length) for x in (query, key, value))
        parts.append(kernel(q, k, v, scaling, window).transpose(1, 2).flatten(0, 1))
    padded = parts[0] if len(parts) == 1 else torch.cat(parts)
    return padded.index_select(0, packing.restore)[None]


def _segments(heads: torch.Tensor, gather: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """``[H, T, D]`` to ``[rows, H, length, D]``."""
    return heads.index_select(1, gather).view(heads.shape[0], rows, length, heads.shape[2]).transpose(0, 1)


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and window < length:
        back = torch.arange(length, device=query.device)
        back = back[:, None] - back[None, :]
        mask = (back >= 0) & (back < window)
    shared = query.shape[1] != key.shape[1]
    if shared and query.device.type == "cpu":
        # PyTorch's fused CPU kernel takes no grouped heads; the fallback would build the whole score matrix.
        groups = query.shape[1] // key.shape[1]
        key, value, shared = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), False
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
    )


def _invariant(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    return invariant_attention(query, key, value, causal(query.shape[2], window, query.device), scaling)


def _variable_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None, packing: Packing
) -> torch.Tensor:
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out: torch.Tensor = varlen.variable_length(q, k, v, packing.cu_seqlens, packing.max_seqlen, scale=scaling, window=window)
    return out[None]


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(INVARIANT, functools.partial(packed_attention, kernel=_invariant))


def runs_variable_length(implementation: str, device: torch.device, compute: torch.dtype) -> bool:
    """Whether our implementation uses variable-length kernels there rather than padded groups."""
    return implementation in (PACKED, SHARED) and varlen.runs_there(device, compute)


def choose_attention(
    wanted: str, *, chosen: bool, device: torch.device, compute: torch.dtype, model_config: Any, announce: bool
) -> tuple[str, ...]:
    """The implementations that a model may use, in order of preference: one, unless a default falls back.

    ``flash_attention_2`` without the package flash-attn is PyTorch's variable-length attention, which runs the same algorithm.

    Args:
        wanted: ``--attn-implementation``.
        chosen: whether the user set it; a default falls back.
        compute: precision of the computation.
        model_config: the model's configuration.
        announce: log the notice of a fallback here.

    Raises:
        UsageError: flash_attention_2 was chosen and cannot be used (M341).
    """
    if wanted != "flash_attention_2":
        return (wanted,)
    plain = is_plain(model_config)
    why = ""
    if device.type != "cuda":
        why = f"flash-attn does not run on {device.type}"
    elif compute not in varlen.HALF:
        why = "flash-attn has no fp32 kernels"
    elif not is_flash_attn_2_available():
        if plain and varlen.has_kernel():
            return (PACKED,) if chosen else (PACKED, "sdpa", "eager")
        why = "the package flash-attn is not installed, and PyTorch's own kernels "
        why += f"lack what {model_config.model_type} needs" if varlen.has_kernel() else "came with PyTorch 2.10"
    if not why:
        return (wanted,)
    if chosen:
        fix = "leave --attn-implementation out, or set it to sdpa"
        raise UsageError("M341", "--attn-implementation flash_attention_2 cannot be used", owner=OWNER, why=why, fix=fix)
    if announce:
        _log.warning("%s: attention runs on PyTorch's own kernels (sdpa)", why)
    return (PACKED, "sdpa", "eager") if plain else ("sdpa", "eager")


def is_plain(config: Any) -> bool:
    """Whether every layer is full or sliding-window softmax attention without soft-caps or sinks."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    odd = ("attn_logit_softcapping", "attention_chunk_size", "sinks", "kv_lora_rank")
    return kinds <= _LAYER_TYPES and text.model_type != "gpt_oss" and not any(getattr(text, name, None) for name in odd)


def check_packable(model: Any) -> None:
    """Refuse packed rows for models in which the samples of a row would see each other.

    Raises:
        UsageError: the model has recurrent or linear-attention layers, or makes its own masks (M345).
    """
    kind = model.config.model_type
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or []) - _LAYER_TYPES - {"chunked_attention"}
    why = ""
    if kinds:
        why = f"{kind} has layers of type {', '.join(sorted(kinds))}, which keep a state along the row"
    elif not model.is_backend_compatible():
        why = f"{kind} does not use transformers' attention interface"
    if why:
        fix = "set --qkv-format bshd"
        raise UsageError("M345", "packed samples (--qkv-format thd) would leak into each other", owner=OWNER, why=why, fix=fix)
