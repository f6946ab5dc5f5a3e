"""Attention over tokens that context-parallel ranks share, and which models can have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AttentionInterface

from miles_core.errors import RunError, UsageError
from miles_fsdp.attention import OWNER, SHARED, is_plain, packed_attention
from miles_fsdp.context import Context, heads_of, tokens_of

if TYPE_CHECKING:
    import torch


def shared_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    context: Context | None = None,
    **further: Any,
) -> tuple[torch.Tensor, None]:
    """:func:`packed_attention` of tokens that context ranks share. Collective.

    Args:
        query: of this rank's tokens, ``[B, heads, T / N, D]``; ``key`` and ``value`` have ``[B, key heads, T / N, D]``.
        context: the ranks.
        further: as for :func:`packed_attention`, of all T tokens.

    Returns:
        ``[B, T / N, heads, D]``, and None for the attention weights.

    Raises:
        RunError: the model did not hand down what the backend gave it (M437).
    """
    if context is None:
        raise RunError(
            "M437",
            f"{type(module).__name__} attends without knowing the context-parallel ranks",
            owner=OWNER,
            why="the model does not hand its keyword arguments down to attention",
            fix="set --context-parallel-size 1",
        )
    query, key, value = heads_of(query, key, value, context)
    return tokens_of(packed_attention(module, query, key, value, attention_mask, **further)[0], context), None


AttentionInterface.register(SHARED, shared_attention)


def check_shareable(model_config: Any, size: int) -> None:
    """Refuse context parallelism for models that mix tokens by more than plain attention, or whose heads do not divide.

    Args:
        model_config: the model's configuration.
        size: context ranks.

    Raises:
        UsageError: as said (M338).
    """
    heads = model_config.get_text_config().num_attention_heads
    why = ""
    if not is_plain(model_config):
        why = f"{model_config.model_type} has more than full or sliding-window softmax attention"
    elif heads % size:
        why = f"{model_config.model_type} has {heads} attention heads, which {size} ranks cannot share evenly"
    if why:
        what = f"--context-parallel-size {size} does not fit the model"
        raise UsageError("M338", what, owner=OWNER, why=why, fix="set it to 1, or to a divisor of the heads")
