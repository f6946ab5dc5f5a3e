"""Linear layers of which every row has the same bits in every batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from miles_core.numerics.product import ROWS, products


def invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, always as products of :data:`~miles_core.numerics.product.ROWS` rows.

    A matrix product chooses its kernel, and so the order of its sums, by its shape. Of one shape, it computes each row alike
    wherever that row stands. The gradient is the ordinary one: it need not be the same in two processes.

    Args:
        x: ``[..., K]``.
        weight: ``[N, K]``.
        bias: ``[N]``.

    Returns:
        ``[..., N]``.
    """
    found: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return found


class InvariantLinear(nn.Linear):
    """:class:`torch.nn.Linear` by :func:`invariant_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """See :func:`invariant_linear`."""
        return invariant_linear(x, self.weight, self.bias)


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows [R, K] @ matrix [K, N]`` in blocks of rows; the last one is filled up with zeros."""
    count = rows.shape[0]
    if count % ROWS:
        rows = F.pad(rows, (0, 0, 0, -count % ROWS))
    blocks = rows.view(rows.shape[0] // ROWS, ROWS, rows.shape[1])
    return products(blocks, matrix.expand(blocks.shape[0], -1, -1)).flatten(0, 1)[:count]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        out = _product(x.reshape(-1, x.shape[-1]).contiguous(), weight.t())
        if bias is not None:
            out += bias
        return out.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        to_x = (rows @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        to_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, rows.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None
