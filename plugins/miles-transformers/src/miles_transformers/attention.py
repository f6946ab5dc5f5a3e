"""Attention of decoding steps: one query per row against the row's slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "miles_slots"


def slot_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, except that a single query does not repeat its keys and values for every head that shares them.

    Copying the cache for each head costs more than the attention itself. Instead the heads that share keys become queries of one
    head: ``[B, groups, heads / groups, dim]``.

    Args:
        query: ``[B, heads, T, dim]``.
        key, value: ``[B, groups, L, dim]``.
        attention_mask: boolean, ``[B, 1, T, L]``.
    """
    batch, heads, length, dim = query.shape
    groups = key.shape[1]
    simple = length == 1 and heads != groups and attention_mask is not None and attention_mask.shape[1] == 1
    if not simple or kwargs.get("position_bias") is not None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return found
    packed = query.reshape(batch, groups, heads // groups, dim)
    output = torch.nn.functional.scaled_dot_product_attention(
        packed, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling")
    )
    return output.reshape(batch, 1, heads, value.shape[-1]), None


def install(module: Any) -> None:
    """Make a model that was loaded with SDPA attention use :func:`slot_attention`."""
    if getattr(module, "_supports_attention_backend", False):
        AttentionInterface.register(NAME, slot_attention)
        module.config._attn_implementation = NAME
