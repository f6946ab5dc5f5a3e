"""Weights through safetensors files in a folder: slow, but any machine that shares the folder, and any tool, can read them."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from miles_core.errors import RunError
from miles_core.protocols.engine import TensorEntry, WeightBucket
from miles_core.weights.bucket import Bucket, Buffer, views
from miles_core.weights.transports.waiting import finish_copies

if TYPE_CHECKING:
    import torch


class HostBuffer:
    """Host memory that grows."""

    def __init__(self) -> None:
        self._flat: torch.Tensor | None = None

    def reserve(self, nbytes: int) -> torch.Tensor:
        """See :class:`miles_core.weights.bucket.Buffer`."""
        import torch

        if self._flat is None or self._flat.numel() < nbytes:
            grown = torch.empty(max(nbytes, 2 * (0 if self._flat is None else self._flat.numel())), dtype=torch.uint8)
            if self._flat is not None:
                grown[: self._flat.numel()].copy_(self._flat)
            self._flat = grown
        return self._flat


class DiskSender:
    """See :class:`miles_core.weights.transports.Transport`."""

    name = "disk"
    slots = 2

    def __init__(self, folder: Path, label: str) -> None:
        self._folder = folder
        self._label = label
        self._buffers: dict[int, HostBuffer] = {}

    def begin(self, receivers: int) -> None:
        """Nothing to do."""

    def buffer(self, slot: int, nbytes: int) -> Buffer:
        """Host memory; it is written to disk when it is full."""
        return self._buffers.setdefault(slot, HostBuffer())

    def stage(self, slot: int, bucket: Bucket, receivers: int) -> list[dict[str, object]]:
        """Write the file."""
        path = self._path(slot)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_bucket(path, bucket.flat[: bucket.nbytes], bucket.entries)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise RunError(
                "M471",
                f"cannot write a bucket of weights of {bucket.nbytes} bytes to {path}",
                owner="miles-core",
                why=str(error),
                fix="free some disk space" if full else f"make {self._folder} writable and see that its disk is not full",
                path=str(path),
            ) from error
        return [{"path": str(path)}] * receivers

    def transmit(self, slot: int, check: Callable[[], None]) -> None:
        """Nothing to do: the file is there."""

    def release(self, slot: int) -> None:
        """Remove the file."""
        self._path(slot).unlink(missing_ok=True)

    def end(self) -> None:
        """Give back the host memory."""
        self._buffers.clear()

    def abort(self) -> None:
        """Remove the files."""
        self.end()
        for slot in range(self.slots):
            self.release(slot)

    def close(self) -> None:
        """Remove the files and the folder."""
        self.abort()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _path(self, slot: int) -> Path:
        return self._folder / f"{self._label}-{slot}.safetensors"


def write_bucket(path: Path, flat: torch.Tensor, entries: Sequence[TensorEntry]) -> None:
    """A bucket as a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(views(flat, entries)), str(path))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def open_sender(*, run_dir: Path, label: str, host: str, ranks: int) -> DiskSender:
    """See :func:`miles_core.weights.transports.open_transport`. The folder is below ``run_dir``, which all machines share."""
    return DiskSender(run_dir.resolve() / "weights", label)


@contextlib.contextmanager
def open_received(bucket: WeightBucket, device: torch.device | str) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """See :func:`miles_core.weights.transports.open_bucket`. The tensors are on the CPU."""
    from safetensors import SafetensorError, safe_open

    path = str(bucket.handle["path"])
    try:
        with safe_open(path, framework="pt") as file:
            yield ((entry.name, file.get_tensor(entry.name)) for entry in bucket.entries)
            finish_copies(device)
    except (OSError, SafetensorError) as error:
        raise RunError(
            "M475",
            f"cannot read the bucket of weights {path}",
            owner="miles-core",
            why=str(error),
            fix="see that trainer and engine share the run folder",
            path=path,
        ) from error
