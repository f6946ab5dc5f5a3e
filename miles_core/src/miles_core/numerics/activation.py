"""SiLU of which every element has the same bits wherever it stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def invariant_silu(x: Tensor) -> Tensor:
    """``x / (1 + exp(-x))``.

    PyTorch's own kernel computes the elements that do not fill a vector register by another exponential, so that their bits
    depend on where they stand. Its ``exp`` alone does not, and sum and quotient are correctly rounded.
    """
    found: Tensor = _Silu.apply(x)  # type: ignore[no-untyped-call]
    return found


class InvariantSilu(nn.Module):
    """:class:`torch.nn.SiLU` by :func:`invariant_silu`."""

    def forward(self, x: Tensor) -> Tensor:
        """See :func:`invariant_silu`."""
        return invariant_silu(x)


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x / x.neg().exp_().add_(1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # Its own formula: the derivative of the quotient above is 0 times infinity for very negative x.
        return torch.ops.aten.silu_backward(grad, x)  # type: ignore[no-any-return]
