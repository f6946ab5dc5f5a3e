"""Rotary positions: angles by the tokens' own positions, and queries and keys turned by them (arXiv:2104.09864)."""

from __future__ import annotations

from typing import Any

import torch

from miles_core.numerics.compiler import compiled
from miles_megatron.models.norm import RMSNorm, normalised


class Positions(torch.nn.Module):
    """In the place of megatron-core's module, which counts along the row: it gives layers no angles, attention asks for them.

    Args:
        counted: that module; its frequencies stay.
    """

    def __init__(self, counted: Any) -> None:
        super().__init__()
        self._counted = [counted]

    def get_rotary_seq_len(self, *_: Any, **__: Any) -> int:
        """Unused: there are as many angles as tokens."""
        return 0

    def forward(self, *_: Any, **__: Any) -> None:
        """Nothing for the layers to do."""

    def angles(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Cosines and sines of the angles of tokens ``[B, T]``, ``[2, T, B, 1, D]`` in float32."""
        (counted,) = self._counted
        frequencies = counted.inv_freq = counted.inv_freq.to(position_ids.device)
        positions = position_ids.T.float()
        if counted.seq_len_interpolation_factor is not None:
            positions = positions / counted.seq_len_interpolation_factor
        angles = positions[..., None] * frequencies
        pairs = (angles, angles)
        whole = torch.stack(pairs, -1).flatten(-2) if counted.rotary_interleaved else torch.cat(pairs, -1)
        return torch.stack((whole.cos(), whole.sin()))[..., None, :]


def turned(
    query: torch.Tensor,
    key: torch.Tensor,
    angles: torch.Tensor,
    *,
    interleaved: bool,
    norms: tuple[RMSNorm, RMSNorm] | None = None,
    fused: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys turned by their angles.

    Args:
        query, key: ``[T, B, heads, D]``.
        angles: their cosines and sines, ``[2, T, B, 1, R]``; what a head has behind its first R numbers stays as it is.
        interleaved: whether pairs are neighbours, and not halves.
        norms: normalise queries and keys before, by these.
        fused: run by ``torch.compile``, which reads the heads once.
    """
    weights = (None, None, 0.0) if norms is None else (norms[0].weight, norms[1].weight, norms[0].eps)
    run = compiled(_turned, (0, 0, 1)) if fused else _turned
    return run(query, key, angles, interleaved, *weights)  # type: ignore[no-any-return]


def _turned(
    query: torch.Tensor,
    key: torch.Tensor,
    angles: torch.Tensor,
    interleaved: bool,
    query_weight: torch.Tensor | None,
    key_weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    if query_weight is not None and key_weight is not None:
        query, key = normalised(query, query_weight, eps), normalised(key, key_weight, eps)
    return _rotated(query, angles, interleaved), _rotated(key, angles, interleaved)


def _rotated(heads: torch.Tensor, angles: torch.Tensor, interleaved: bool) -> torch.Tensor:
    size = angles.shape[-1]
    turned, rest = heads[..., :size], heads[..., size:]
    if interleaved:
        other = torch.stack((-turned[..., 1::2], turned[..., 0::2]), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        other = torch.cat((-second, first), -1)
    cosines, sines = angles.to(heads.dtype)
    turned = turned * cosines + other * sines
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned
