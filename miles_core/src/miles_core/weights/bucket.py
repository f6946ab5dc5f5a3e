"""Buckets: named tensors of any dtypes, laid side by side in one flat run of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from miles_core.errors import RunError
from miles_core.protocols.engine import TensorEntry

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64
"""Bytes. Tensors start at multiples of it, so that views of any dtype are aligned, for vector loads too."""


class Buffer(Protocol):
    """Room for one bucket, which its transport provides."""

    def reserve(self, nbytes: int) -> torch.Tensor:
        """The room as a flat ``uint8`` tensor, of which at least the first ``nbytes`` may be written.

        Raises:
            RunError: there is no such room.
        """
        ...


@dataclass(frozen=True)
class Bucket:
    """A filled bucket: ``nbytes`` bytes of ``flat`` hold the tensors that ``entries`` describe."""

    index: int
    entries: tuple[TensorEntry, ...]
    nbytes: int
    flat: torch.Tensor


def pack(
    tensors: Iterable[tuple[str, torch.Tensor]], size: int, buffer: Callable[[int, int], Buffer] | None = None
) -> Iterator[Bucket]:
    """Copy tensors into buckets of at most ``size`` bytes, in order.

    A tensor is copied as soon as it comes and not needed afterwards, so that an export can reuse its memory. A tensor larger than
    ``size`` gets a bucket for itself. No bucket is empty.

    Args:
        tensors: names and tensors, on any device.
        size: bytes.
        buffer: called with the index of a bucket and the bytes that it may need, before its first tensor is copied; plain host
            memory when not given.
    """
    provide = buffer or _host_buffer
    entries: list[TensorEntry] = []
    index = end = 0
    room: Buffer | None = None
    flat: torch.Tensor | None = None
    for name, tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if entries and offset + nbytes > size:
            assert flat is not None
            yield Bucket(index, tuple(entries), end, flat)
            index, offset, entries, room = index + 1, 0, [], None
        if room is None:
            room = provide(index, max(size, nbytes))
        end = offset + nbytes
        flat = room.reserve(end)
        flat[offset:end].copy_(as_bytes(tensor))
        entries.append(TensorEntry(name, dtype_name(tensor.dtype), tuple(tensor.shape), offset, nbytes))
    if entries:
        assert flat is not None
        yield Bucket(index, tuple(entries), end, flat)


def views(flat: torch.Tensor, entries: Iterable[TensorEntry]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a bucket as views of its bytes.

    Raises:
        RunError: an entry contradicts itself or the bucket's size (M472).
    """
    import torch

    for entry in entries:
        dtype = getattr(torch, entry.dtype, None)
        if not isinstance(dtype, torch.dtype) or math.prod(entry.shape) * dtype.itemsize != entry.nbytes:
            raise _broken(f"{entry.name} is said to be {entry.nbytes} bytes of {entry.dtype} {entry.shape}")
        if entry.offset < 0 or entry.offset + entry.nbytes > flat.numel():
            raise _broken(f"{entry.name} ends at byte {entry.offset + entry.nbytes} of {flat.numel()}")
        yield entry.name, flat[entry.offset : entry.offset + entry.nbytes].view(dtype).view(entry.shape)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, row-major, flat ``uint8``; a view where the layout allows."""
    import torch

    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def dtype_name(dtype: torch.dtype) -> str:
    """As torch spells it without prefix: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _broken(what: str) -> RunError:
    return RunError(
        "M472", "a bucket of weights is broken", owner="miles-core", why=what, fix="publish again; report it when it recurs"
    )


@dataclass(frozen=True)
class _HostBuffer:
    flat: torch.Tensor

    def reserve(self, nbytes: int) -> torch.Tensor:
        assert nbytes <= self.flat.numel()
        return self.flat


def _host_buffer(_index: int, nbytes: int) -> Buffer:
    import torch

    return _HostBuffer(torch.empty(nbytes, dtype=torch.uint8))
