"""Attention over tokens that context-parallel ranks share, and which models can have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from miles_core.errors import RunError, UsageError
from miles_fsdp.attention import OWNER, SHARED, Packing, is_plain, packed_attention
from miles_fsdp.context import heads_of, tokens_of
from miles_fsdp.ring import Ring, ring_attention

if TYPE_CHECKING:
    from miles_core.training.batch import MicroBatch
    from miles_fsdp.context import Sharing


def shared_row(whole: MicroBatch, sharing: Sharing, *, varlen: bool) -> Packing | Ring | None:
    """What attention needs to know of a micro-batch besides the ranks: its segments, and among how many ranks they are dealt out.

    Args:
        whole: as in :class:`miles_fsdp.context.Shard`.
        sharing: the ranks.
        varlen: whether variable-length kernels run.
    """
    if sharing.ring is None:
        return None if whole.cu_seqlens is None else Packing.of(whole, varlen=varlen)
    if whole.cu_seqlens is None:
        rows, length = whole.tokens.shape
        bounds = list(range(0, (rows + 1) * length, length))
    else:
        bounds = whole.cu_seqlens.tolist()
    return Ring.of(bounds, sharing.ring, whole.tokens.device, varlen=varlen)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def shared_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    sharing: Sharing | None = None,
    row: Packing | Ring | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """:func:`packed_attention` of tokens that context ranks share. Collective.

    Args:
        query: of this rank's tokens, ``[B, heads, T / N, D]``; ``key`` and ``value`` have ``[B, key heads, T / N, D]``.
        scaling, sliding_window: as for :func:`packed_attention`.
        sharing: the ranks.
        row: what :func:`shared_row` says of all T tokens.

    Returns:
        ``[B, T / N, heads, D]``, and None for the attention weights.

    Raises:
        RunError: the model did not hand down what the backend gave it (M437).
    """
    if sharing is None:
        raise RunError(
            "M437",
            f"{type(module).__name__} attends without knowing the context-parallel ranks",
            owner=OWNER,
            why="the model does not hand its keyword arguments down to attention",
            fix="set --context-parallel-size 1",
        )
    if sharing.exchange is not None:
        query, key, value = heads_of(query, key, value, sharing.exchange)
    if isinstance(row, Ring):
        out = ring_attention(query, key, value, row, scaling, sliding_window)
    else:
        out, _weights = packed_attention(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, packing=row
        )
    return out if sharing.exchange is None else tokens_of(out, sharing.exchange), None


AttentionInterface.register(SHARED, shared_attention)


def check_shareable(model_config: Any, size: int) -> None:
    """Refuse context parallelism for models that mix tokens by more than plain attention.

    Args:
        model_config: the model's configuration.
        size: context ranks.

    Raises:
        UsageError: as said (M338).
    """
    if not is_plain(model_config):
        why = f"{model_config.model_type} has more than full or sliding-window softmax attention"
        what = f"--context-parallel-size {size} does not fit the model"
        raise UsageError("M338", what, owner=OWNER, why=why, fix="set it to 1")
