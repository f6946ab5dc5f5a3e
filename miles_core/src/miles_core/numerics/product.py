"""Matrix products of one shape, which the library computes alike however many of them there are."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 16
"""Rows of every product: few, as a decoding step has few; a batch of such products is nearly as fast as one large product."""


def products(left: Tensor, right: Tensor) -> Tensor:
    """``left [P, ROWS, K] @ right [P, K, N]``, every product computed by one thread.

    A product that several threads share is cut at columns that depend on their number, and kernels of different widths add in
    different orders. The library shares products out whole as soon as every thread gets one, so no more threads than products
    are let in.
    """
    threads = torch.get_num_threads()
    if left.shape[0] >= threads:
        return torch.bmm(left, right)
    torch.set_num_threads(max(1, left.shape[0]))
    try:
        return torch.bmm(left, right)
    finally:
        torch.set_num_threads(threads)
