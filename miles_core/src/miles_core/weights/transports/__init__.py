"""Transports: how the bytes of a bucket get from a trainer to engines."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from miles_core.errors import RunError
from miles_core.protocols.engine import WeightBucket
from miles_core.weights.bucket import Bucket, Buffer

if TYPE_CHECKING:
    import torch

TRANSPORTS = ("broadcast", "cuda_ipc", "disk", "process_group", "shared_file")
SHARED_MEMORY = Path("/dev/shm")


class Transport(Protocol):
    """The sender's side, for one trainer process and the engines that it feeds.

    For each publish: ``begin``; for each bucket ``buffer``, ``stage``, ``transmit`` and, when every engine has answered,
    ``release``; then ``end``, or ``abort`` after a failure. Slots are numbered from 0; a slot is reused after its release.

    Attributes:
        name: as in :class:`miles_core.protocols.WeightBucket`.
        slots: buckets that may be on their way at a time.
    """

    name: str
    slots: int

    def begin(self, receivers: int) -> None:
        """A publish to ``receivers`` engines begins."""
        ...

    def buffer(self, slot: int, nbytes: int) -> Buffer:
        """Room for a bucket of up to ``nbytes``, to be filled."""
        ...

    def stage(self, slot: int, bucket: Bucket, receivers: int) -> list[dict[str, object]]:
        """The bucket is filled: make its bytes reachable, and return one handle per receiver."""
        ...

    def transmit(self, slot: int, check: Callable[[], None]) -> None:
        """The receivers were told of the bucket: take part in moving the bytes, where the sender has to.

        ``check`` raises when a receiver has failed; call it now and then while waiting for them.
        """
        ...

    def release(self, slot: int) -> None:
        """Every receiver has copied the bucket."""
        ...

    def end(self) -> None:
        """The publish is over: give back memory that the engines need."""
        ...

    def abort(self) -> None:
        """The publish failed, receivers may be anywhere: forget what was shared with them. The next publish starts anew."""
        ...

    def close(self) -> None:
        """Give back everything."""
        ...


def open_transport(name: str, run_dir: Path, label: str, *, host: str = "127.0.0.1", ranks: int = 1) -> Transport:
    """A transport for one sender.

    Args:
        name: one of :data:`TRANSPORTS`.
        run_dir: of the run; processes of a run share files in :func:`run_folder` of it.
        label: of the sender, unique in the run.
        host: address of this process that engines can reach.
        ranks: processes of one engine that take the weights each for itself; one where the engine's own process does.

    Raises:
        RunError: there is no such transport (M475).
    """
    factory: Any = _module(name).open_sender
    transport: Transport = factory(run_dir=run_dir, label=label, host=host, ranks=ranks)
    return transport


def open_bucket(
    bucket: WeightBucket, device: torch.device | str = "cpu"
) -> AbstractContextManager[Iterator[tuple[str, torch.Tensor]]]:
    """The receiver's side: a context with the names and tensors of a bucket.

    The tensors are views of memory that the sender reuses: copy them, and keep none beyond the context. They are on the CPU or on
    ``device``, whichever the transport delivers to; leaving the context waits until copies of them on ``device`` are finished.

    Raises:
        RunError: the bucket cannot be opened (M475) or is broken (M472).
    """
    context: AbstractContextManager[Iterator[tuple[str, torch.Tensor]]] = _module(bucket.transport).open_received(bucket, device)
    return context


def run_folder(run_dir: Path) -> Path:
    """Where the processes of a run on one machine share files: in memory where there is ``/dev/shm``, else in the temporary folder.

    Every process of the run gets the same answer; two runs get two.
    """
    number = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    usable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK | os.X_OK)
    return (SHARED_MEMORY if usable else Path(tempfile.gettempdir())) / f"miles-{number}"


def remove_stale(folder: Path) -> bool:
    """Remove what a crashed run left in its :func:`run_folder`; returns whether there was anything."""
    if not folder.is_dir():
        return False
    shutil.rmtree(folder)
    return True


def _module(name: str) -> Any:
    if name not in TRANSPORTS:
        raise RunError(
            "M475",
            f"there is no weight transport {name!r}",
            owner="miles-core",
            fix=f"choose one of {', '.join(TRANSPORTS)}",
        )
    return importlib.import_module(f"miles_core.weights.transports.{name}")
