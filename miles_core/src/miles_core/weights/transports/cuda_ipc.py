"""Weights by handle, for processes that share a GPU: nothing is copied but from the sender's bucket into the engine's weights."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING

from miles_core.errors import RunError
from miles_core.protocols.engine import WeightBucket
from miles_core.weights.bucket import Bucket, Buffer, views
from miles_core.weights.transports.waiting import finish_copies

if TYPE_CHECKING:
    import torch

_DEVICE = 6
"""Position of the device index among the arguments of torch's ``rebuild_cuda_tensor``."""


class DeviceBuffer:
    """Memory of the current GPU, taken at once: its size is the bucket's."""

    def __init__(self, nbytes: int) -> None:
        import torch

        self.flat = torch.empty(nbytes, dtype=torch.uint8, device="cuda")

    def reserve(self, nbytes: int) -> torch.Tensor:
        """See :class:`miles_core.weights.bucket.Buffer`."""
        assert nbytes <= self.flat.numel()
        return self.flat


class CudaIpcSender:
    """See :class:`miles_core.weights.transports.Transport`. Buckets take GPU memory only while weights are published.

    Args:
        ranks: processes of one receiver; with several, a handle is ``{"ranks": [...]}`` with one for each.
    """

    name = "cuda_ipc"
    slots = 2

    def __init__(self, ranks: int = 1) -> None:
        self._buffers: dict[int, DeviceBuffer] = {}
        self._ranks = ranks

    def begin(self, receivers: int) -> None:
        """Nothing to do."""

    def buffer(self, slot: int, nbytes: int) -> Buffer:
        """GPU memory."""
        import torch

        held = self._buffers.get(slot)
        if held is None or held.flat.numel() < nbytes:
            self._buffers.pop(slot, None)
            try:
                self._buffers[slot] = DeviceBuffer(nbytes)
            except torch.cuda.OutOfMemoryError as error:
                raise RunError(
                    "M471",
                    f"no GPU memory for a bucket of weights of {nbytes} bytes",
                    owner="miles-core",
                    why=str(error).split(". ")[0],
                    fix="lower --update-weight-buffer-size, or leave the engine less memory",
                ) from error
        return self._buffers[slot]

    def stage(self, slot: int, bucket: Bucket, receivers: int) -> list[dict[str, object]]:
        """A handle for each receiver: torch counts the receivers of a handle, one each."""
        import torch
        from torch.multiprocessing.reductions import reduce_tensor

        flat = self._buffers[slot].flat
        torch.cuda.current_stream().synchronize()

        def handle() -> dict[str, object]:
            _, arguments = reduce_tensor(flat)  # type: ignore[no-untyped-call]
            packed = io.BytesIO()
            ForkingPickler(packed).dump(arguments)
            return {"tensor": packed.getvalue(), "device": device_uuid(flat.device.index)}

        if self._ranks == 1:
            return [handle() for _ in range(receivers)]
        return [{"ranks": [handle() for _ in range(self._ranks)]} for _ in range(receivers)]

    def transmit(self, slot: int, check: Callable[[], None]) -> None:
        """Nothing to do: the engine reads by itself."""

    def release(self, slot: int) -> None:
        """Nothing to do: the memory is used again."""

    def end(self) -> None:
        """Give the GPU memory back, to the driver and not only to torch's cache: engines need it."""
        import torch

        self._buffers.clear()
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()

    def abort(self) -> None:
        """As :meth:`end`."""
        self.end()

    def close(self) -> None:
        """As :meth:`end`."""
        self.end()


def open_sender(*, run_dir: Path, label: str, host: str, ranks: int) -> CudaIpcSender:
    """See :func:`miles_core.weights.transports.open_transport`. Ranks of one engine open the same memory."""
    return CudaIpcSender(ranks)


@contextlib.contextmanager
def open_received(bucket: WeightBucket, device: torch.device | str) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """See :func:`miles_core.weights.transports.open_bucket`. The tensors are on the GPU that holds the bucket."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    arguments = list(pickle.loads(bucket.handle["tensor"]))  # type: ignore[arg-type]
    # The sender may see the same GPU under another number.
    arguments[_DEVICE] = _index_of(str(bucket.handle["device"]))
    try:
        flat = rebuild_cuda_tensor(*arguments)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise RunError(
            "M475",
            "cannot open a bucket of weights in the trainer's GPU memory",
            owner="miles-core",
            why=str(error).splitlines()[0],
            fix="run trainer and engine as one user in one container, without an allocator that forbids CUDA IPC",
        ) from error
    try:
        yield views(flat, bucket.entries)
        finish_copies(flat.device)
        finish_copies(device)
    finally:
        del flat


def device_uuid(index: int) -> str:
    """The name of a GPU that all processes agree on."""
    import torch

    return str(torch.cuda.get_device_properties(index).uuid)


def _index_of(uuid: str) -> int:
    import torch

    for index in range(torch.cuda.device_count()):
        if device_uuid(index) == uuid:
            return index
    raise RunError(
        "M475",
        f"this process does not see the GPU {uuid} that holds the weights",
        owner="miles-core",
        why=f"it sees {torch.cuda.device_count()} others",
        fix="place the engine on the trainer's GPU (--colocate)",
    )
