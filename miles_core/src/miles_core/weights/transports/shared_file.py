"""Weights through files that both sides map into memory: for processes of one machine, without an accelerator of their own."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from miles_core.errors import RunError
from miles_core.protocols.engine import WeightBucket
from miles_core.weights.bucket import Bucket, Buffer, views
from miles_core.weights.transports import run_folder
from miles_core.weights.transports.waiting import finish_copies

if TYPE_CHECKING:
    import torch

GRANULE = 1 << 20
"""Bytes. Memory of a segment is taken in multiples of it."""


class Segment:
    """A file mapped into memory, which grows and is used again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._backed = 0
        self._flat: torch.Tensor | None = None

    def extend(self, nbytes: int) -> Segment:
        """Address space for ``nbytes``; memory is taken by :meth:`reserve`."""
        import torch

        if self._flat is None or self._flat.numel() < nbytes:
            os.ftruncate(self._fd, nbytes)
            self._flat = torch.frombuffer(mmap.mmap(self._fd, nbytes), dtype=torch.uint8)
        return self

    def reserve(self, nbytes: int) -> torch.Tensor:
        """See :class:`miles_core.weights.bucket.Buffer`."""
        assert self._flat is not None
        if nbytes > self._backed:
            wanted = min(-(-nbytes // GRANULE) * GRANULE, self._flat.numel())
            try:
                # Writing to a mapped page that the file system has no room for kills the process: ask first.
                os.posix_fallocate(self._fd, self._backed, wanted - self._backed)
            except OSError as error:
                raise _no_room(self.path, wanted, error) from error
            self._backed = wanted
        return self._flat

    def close(self) -> None:
        """Unmap and remove the file."""
        self._flat = None
        os.close(self._fd)
        self.path.unlink(missing_ok=True)


class SharedFileSender:
    """See :class:`miles_core.weights.transports.Transport`. Two segments, kept from publish to publish."""

    name = "shared_file"
    slots = 2

    def __init__(self, folder: Path, label: str) -> None:
        self._folder = folder
        self._label = label
        self._segments: dict[int, Segment] = {}

    def begin(self, receivers: int) -> None:
        """Nothing to do."""

    def buffer(self, slot: int, nbytes: int) -> Buffer:
        """A segment."""
        if slot not in self._segments:
            path = self._folder / f"{self._label}-{slot}.weights"
            try:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                self._segments[slot] = Segment(path)
            except OSError as error:
                raise _no_room(path, nbytes, error) from error
        return self._segments[slot].extend(nbytes)

    def stage(self, slot: int, bucket: Bucket, receivers: int) -> list[dict[str, object]]:
        """The path."""
        return [{"path": str(self._segments[slot].path)}] * receivers

    def transmit(self, slot: int, check: Callable[[], None]) -> None:
        """Nothing to do: the bytes are there."""

    def release(self, slot: int) -> None:
        """Nothing to do: the segment is used again."""

    def end(self) -> None:
        """Nothing to do: host memory is kept, so that the next publish does not wait for it."""

    def abort(self) -> None:
        """Use new files from now on: an engine may still map the old ones."""
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    def close(self) -> None:
        """Remove the files, and the folder after the last of them."""
        self.abort()
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def open_sender(*, run_dir: Path, label: str, host: str, ranks: int) -> SharedFileSender:
    """See :func:`miles_core.weights.transports.open_transport`."""
    return SharedFileSender(run_folder(run_dir), label)


@contextlib.contextmanager
def open_received(bucket: WeightBucket, device: torch.device | str) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """See :func:`miles_core.weights.transports.open_bucket`. The tensors are on the CPU."""
    import torch

    path = str(bucket.handle["path"])
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _unreachable(path, str(error)) from error
    try:
        size = os.fstat(fd).st_size
        # Reading a mapped page beyond the end of the file kills the process.
        if size < bucket.nbytes:
            raise _unreachable(path, f"it has {size} bytes, not {bucket.nbytes}")
        # Torch has no read-only tensors and warns of a read-only mapping, hence read and write; nothing writes here.
        flat = (
            torch.frombuffer(mmap.mmap(fd, bucket.nbytes), dtype=torch.uint8)
            if bucket.nbytes
            else torch.empty(0, dtype=torch.uint8)
        )
    finally:
        os.close(fd)
    yield views(flat, bucket.entries)
    finish_copies(device)


def _no_room(path: Path, nbytes: int, error: OSError) -> RunError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
    return RunError(
        "M471",
        f"no room for a bucket of weights of {nbytes} bytes in {path.parent}" if full else f"cannot write weights to {path}",
        owner="miles-core",
        why=error.strerror or str(error),
        fix="lower --update-weight-buffer-size, or enlarge shared memory (docker run --shm-size)"
        if full
        else f"make {path.parent.parent} writable",
        path=str(path),
    )


def _unreachable(path: str, why: str) -> RunError:
    return RunError(
        "M475",
        f"cannot open the bucket of weights {path}",
        owner="miles-core",
        why=why,
        fix="run engine and trainer on one machine with a common /dev/shm",
        path=path,
    )
