"""How tensor-parallel ranks share a parameter: a rank's part of whole tensors, and whole tensors of all ranks' parts.

megatron-core keeps query, key and value together, group by group: the query heads of a key head, then that key head and its value
head. A gated MLP's first matrix is a rank's rows of the gate above the same rows of the other half. The vocabulary is padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from miles_megatron.architecture import Architecture


class Tensors(Protocol):
    """Whole tensors by name, of which any part can be had without the rest."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        ...

    def part(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """``[start, stop)`` along a dimension, on the CPU."""
        ...


@dataclass(frozen=True)
class Layout:
    """One way to share a parameter.

    Attributes:
        name: by which ranks tell each other of it.
        part: of the whole tensors by their names, rank and ranks: this rank's part; of the vocabulary it may lack the last rows.
        join: the whole tensors, in the order of the names, of all ranks' parts in their order.
    """

    name: str
    part: Callable[[Tensors, Sequence[str], int, int, Architecture], torch.Tensor]
    join: Callable[[Sequence[torch.Tensor], Architecture], list[torch.Tensor]]


def _share(tensors: Tensors, name: str, dim: int, rank: int, ranks: int) -> torch.Tensor:
    share = tensors.shape(name)[dim] // ranks
    return tensors.part(name, dim, rank * share, (rank + 1) * share)


def _qkv(tensors: Tensors, names: Sequence[str], rank: int, ranks: int, architecture: Architecture) -> torch.Tensor:
    groups = architecture.key_heads // ranks
    shares = [_share(tensors, name, 0, rank, ranks) for name in names]
    return torch.cat([share.unflatten(0, (groups, -1)) for share in shares], 1).flatten(0, 1)  # type: ignore[no-untyped-call]


def _join_qkv(parts: Sequence[torch.Tensor], architecture: Architecture) -> list[torch.Tensor]:
    heads, size = architecture.heads // architecture.key_heads, architecture.head_dim
    whole = torch.cat(list(parts)).unflatten(0, (architecture.key_heads, -1))  # type: ignore[no-untyped-call]
    return [each.flatten(0, 1) for each in whole.split([heads * size, size, size], 1)]


def _vocabulary(tensors: Tensors, names: Sequence[str], rank: int, ranks: int, architecture: Architecture) -> torch.Tensor:
    size, padded = tensors.shape(names[0])[0], architecture.padded_vocab(ranks)
    share = padded // ranks
    return tensors.part(names[0], 0, min(rank * share, size), min((rank + 1) * share, size))


def _join_gated(parts: Sequence[torch.Tensor], _: Architecture) -> list[torch.Tensor]:
    halves = [part.chunk(2) for part in parts]
    return [torch.cat([half[i] for half in halves]) for i in (0, 1)]


WHOLE = Layout(
    "whole",
    lambda tensors, names, rank, ranks, _: tensors.part(names[0], 0, 0, tensors.shape(names[0])[0]),
    lambda parts, _: [parts[0]],
)
COLUMNS = Layout(
    "columns",
    lambda tensors, names, rank, ranks, _: _share(tensors, names[0], 1, rank, ranks),
    lambda parts, _: [torch.cat(list(parts), 1)],
)
GATED = Layout(
    "gated",
    lambda tensors, names, rank, ranks, _: torch.cat([_share(tensors, name, 0, rank, ranks) for name in names]),
    _join_gated,
)
QKV = Layout("qkv", _qkv, _join_qkv)
VOCABULARY = Layout("vocabulary", _vocabulary, lambda parts, architecture: [torch.cat(list(parts))[: architecture.vocab_size]])
LAYOUTS = {each.name: each for each in (WHOLE, COLUMNS, GATED, QKV, VOCABULARY)}
