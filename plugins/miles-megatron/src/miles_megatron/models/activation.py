"""SwiGLU (arXiv:2002.05202) as one loop forward and one backward: megatron-core's own backward loop reads its inputs twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from torch.autograd.function import once_differentiable

from miles_core.numerics.compiler import compiled

if TYPE_CHECKING:
    from collections.abc import Sequence


class GatedSilu(torch.nn.Module):
    """silu(a) * b of rows ``[..., (a, b)]``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of ``[..., 2 * F]``, ``[..., F]``."""
        return _GatedSilu.apply(x)  # type: ignore[no-untyped-call,no-any-return]


def install(chunks: Sequence[Any]) -> None:
    """Give the gated blocks of a model's parts these loops, if all are megatron-core's plain ones and nothing else fuses them."""
    config = chunks[0].config
    blocks = [module for chunk in chunks for module in chunk.modules() if hasattr(module, "activation_func")]
    plain = config.gated_linear_unit and config.activation_func is F.silu and not config.bias_activation_fusion
    if plain and not config.use_te_activation_func and all(type(module) is MLP for module in blocks):
        for chunk in chunks:
            # The name goes back to the library whose modules take whole rows, too.
            chunk.config.use_te_activation_func = True
        for module in blocks:
            module.activation_func = GatedSilu()


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return compiled(_product, (0,))(x)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return compiled(_gradient, (0, 0), in_parts=True)(gradient, x)  # type: ignore[no-any-return]


def _product(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return F.silu(a) * b


def _gradient(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    gate = torch.sigmoid(a)
    return torch.cat((gradient * b * gate * (1 + a * (1 - gate)), gradient * a * gate), -1)
