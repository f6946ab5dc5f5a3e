"""Attention of decoding steps: one query per row against the row's slot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from miles_core.numerics.attention import causal, invariant_attention

NAME = "miles_slots"
INVARIANT = "miles_slots_invariant"


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


def invariant_slot_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of ``--true-on-policy-mode``: :func:`miles_core.numerics.attention.invariant_attention`, of slots and of prefills.

    Keys must lie where a trainer's do, counted from the start of their sequence. So they do in a slot; the rows of a prefill,
    which are padded on the left, are turned until they begin with their first token.

    Args:
        query, key, value: as in :func:`slot_attention`.
        attention_mask: boolean, ``[B, 1, T, L]``, with padding tokens that see themselves alone; None lets a query see the keys up
            to its own, the last query being that of the last key.
    """
    length, columns = query.shape[2], key.shape[2]
    scaling = kwargs.get("scaling")
    if attention_mask is None:
        visible = causal(columns, device=query.device)[:, columns - length :]
    else:
        visible = attention_mask[:, 0]
    padding = _padding(visible) if length == columns > 1 else None
    if padding is None:
        return invariant_attention(query, key, value, visible, scaling).transpose(1, 2), None
    places = torch.arange(length, device=query.device)
    there, back = ((places + sign * padding[:, None]) % length for sign in (1, -1))
    query, key, value = (_turned(states, there) for states in (query, key, value))
    visible = visible.gather(1, there[:, :, None].expand_as(visible))
    visible = visible.gather(2, there[:, None, :].expand_as(visible))
    return _turned(invariant_attention(query, key, value, visible, scaling), back).transpose(1, 2), None


def _padding(visible: Tensor) -> Tensor | None:
    """Tokens of left padding of each row, ``[B]``; None when there are none. A row's first token sees none before it."""
    blind = ~visible.diagonal(-1, 1, 2)
    padding = torch.where(blind, torch.arange(1, visible.shape[1], device=visible.device), 0).amax(1)
    return padding if bool(padding.any()) else None


def _turned(states: Tensor, places: Tensor) -> Tensor:
    """``[B, H, T, D]`` with the tokens of ``places [B, T]`` in this order."""
    return states.gather(2, places[:, None, :, None].expand_as(states))


def install(module: Any, *, invariant: bool = False) -> None:
    """Make a model that was loaded with SDPA attention use :func:`slot_attention`, or :func:`invariant_slot_attention`."""
    if invariant:
        AttentionInterface.register(INVARIANT, invariant_slot_attention)
        module.config._attn_implementation = INVARIANT
        return
    if getattr(module, "_supports_attention_backend", False):
        AttentionInterface.register(NAME, slot_attention)
        module.config._attn_implementation = NAME
