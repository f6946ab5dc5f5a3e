"""The KV cache: one pool per layer, seen as rows of slots, behind transformers' cache interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True)
class LayerShape:
    """Keys and values of one token in one layer: ``[heads, key_dim]`` and ``[heads, value_dim]``."""

    heads: int
    key_dim: int
    value_dim: int


@dataclass
class Prefill:
    """Where the keys and values of a prefill go.

    Attributes:
        first: first slot; the rows of the prefill lie behind one another.
        source: row of the forward pass that each slot copies, ``[M]``; None when every slot has a row of its own.
        padding: tokens of left padding per row of the forward pass, ``[U]``; None when there is none.
    """

    first: int
    count: int
    source: Tensor | None
    padding: Tensor | None


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, ``[rows, heads, length, dim]``.

    Slot ``i`` holds the token at position ``p`` in column ``p``. What lies behind a slot's last token is stale and finite, and
    every attention mask hides it.
    """

    is_compileable = False
    is_sliding = False

    def __init__(self, shape: LayerShape, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shape = shape
        self.key_pool = torch.zeros(tokens * shape.heads * shape.key_dim, dtype=dtype, device=device)
        self.value_pool = torch.zeros(tokens * shape.heads * shape.value_dim, dtype=dtype, device=device)
        self.dtype, self.device = dtype, device
        self.is_initialized = True
        self.cache: SlotCache | None = None

    def view(self, rows: int, length: int) -> None:
        """See the pools as ``rows`` slots of ``length`` tokens."""
        size = rows * length * self.shape.heads
        self.keys = self.key_pool[: size * self.shape.key_dim].view(rows, self.shape.heads, length, self.shape.key_dim)
        self.values = self.value_pool[: size * self.shape.value_dim].view(rows, self.shape.heads, length, self.shape.value_dim)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new keys and values, ``[B, heads, T, dim]``; returns what the queries attend to."""
        assert self.cache is not None
        prefill = self.cache.prefill
        if prefill is not None:
            self._store(self.keys, key_states, prefill)
            self._store(self.values, value_states, prefill)
            return key_states, value_states
        place, rows, length = self.cache.place, self.cache.rows, self.cache.attended
        heads = self.shape.heads
        self.keys.view(-1, self.shape.key_dim).index_copy_(0, place[heads], key_states.reshape(rows * heads, -1))
        self.values.view(-1, self.shape.value_dim).index_copy_(0, place[heads], value_states.reshape(rows * heads, -1))
        return self.keys[:rows, :, :length], self.values[:rows, :, :length]

    @staticmethod
    def _store(pool: Tensor, states: Tensor, prefill: Prefill) -> None:
        length = states.shape[2]
        if prefill.padding is not None:
            columns = torch.arange(length, device=states.device) + prefill.padding[:, None]
            columns = columns.clamp_(max=length - 1)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
            states = states.gather(2, columns)
        if prefill.source is not None:
            states = states.index_select(0, prefill.source)
        pool[prefill.first : prefill.first + prefill.count, :, :length] = states

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the pools exist from the start."""

    def get_seq_length(self, cache_position: Any = None) -> int:
        """Tokens in the longest slot that the next pass attends to."""
        return self.cache.attended if self.cache is not None else 0

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Masks are given to the model whole; this is only asked by models that ignore them."""
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        """Columns of a slot."""
        return int(self.keys.shape[2])

    get_max_cache_shape = get_max_length


class SlotCache(Cache):  # type: ignore[misc]
    """All layers of the cache.

    Args:
        shapes: per layer; all layers hold every slot.
        tokens: size of the pool in tokens.
    """

    def __init__(self, shapes: Sequence[LayerShape], tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        layers = [SlotLayer(shape, tokens, dtype, device) for shape in shapes]
        super().__init__(layers=layers)
        self.tokens = tokens
        self.row_capacity = 0
        self.length_capacity = 0
        self.prefill: Prefill | None = None
        self.rows = 0
        self.attended = 0
        self.place: dict[int, Tensor] = {}
        for layer in layers:
            layer.cache = self

    def reshape(self, rows: int, length: int, used_rows: int, used_length: int) -> None:
        """See the pools as ``rows`` slots of ``length`` tokens, and keep ``used_length`` tokens of the first ``used_rows``."""
        if rows * length > self.tokens:
            raise ValueError(f"{rows} slots of {length} tokens do not fit into {self.tokens} tokens")
        for layer in self.layers:
            kept = None
            if used_rows:
                kept = layer.keys[:used_rows, :, :used_length].clone(), layer.values[:used_rows, :, :used_length].clone()
            layer.view(rows, length)
            if kept is not None:
                layer.keys[:used_rows, :, :used_length], layer.values[:used_rows, :, :used_length] = kept
        self.row_capacity, self.length_capacity = rows, length

    def start_prefill(self, prefill: Prefill) -> None:
        """The next forward pass is this prefill."""
        self.prefill = prefill

    def start_step(self, positions: Tensor, attended: int) -> None:
        """The next forward pass writes one token per slot at ``positions`` ``[N]`` and attends to ``attended`` columns."""
        self.prefill = None
        self.rows, self.attended = positions.shape[0], attended
        slots = torch.arange(self.rows, device=positions.device)
        self.place = {}
        for layer in self.layers:
            heads = layer.shape.heads
            if heads not in self.place:
                head = torch.arange(heads, device=positions.device)
                rows = (slots[:, None] * heads + head) * self.length_capacity + positions[:, None]
                self.place[heads] = rows.flatten()

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of slots to other slots; the two do not overlap."""
        for layer in self.layers:
            layer.keys[targets, :, :length] = layer.keys[sources, :, :length]
            layer.values[targets, :, :length] = layer.values[sources, :, :length]

    def drop(self) -> None:
        """Give the memory back. Layers and cache refer to each other, so that they would hold it until a garbage collection."""
        for layer in self.layers:
            layer.key_pool = layer.value_pool = layer.keys = layer.values = layer.cache = None
        self.place = {}

    def clear(self) -> None:
        """Zero everything, also what a failed forward pass left."""
        for layer in self.layers:
            layer.key_pool.zero_()
            layer.value_pool.zero_()
