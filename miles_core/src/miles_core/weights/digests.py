"""Fingerprints of tensors, for comparing the weights of two processes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor, in hexadecimal.

    The same on every device and for every memory layout of the same values. Bytes are compared, not numbers: 0.0 and -0.0 differ.
    """
    from miles_core.weights.bucket import as_bytes, dtype_name

    state = hashlib.sha256(f"{dtype_name(tensor.dtype)}{tuple(tensor.shape)}".encode())
    state.update(as_bytes(tensor).cpu().numpy().data)
    return state.hexdigest()


def as_dtype(tensor: torch.Tensor, name: str | None) -> torch.Tensor:
    """The tensor in the dtype that torch spells ``torch.<name>``; unchanged for None."""
    import torch

    return tensor if name is None else tensor.to(getattr(torch, name))
