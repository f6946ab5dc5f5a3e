"""Weights by broadcast from the trainer to engines on other devices or machines, over a process group of their own (NCCL or gloo).

The sender opens a TCP store and is rank 0. An engine needs nothing beforehand: the first bucket tells it where the store is, and
there it draws its rank. The group is used again as long as the number of engines stays the same.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.errors import RunError
from miles_core.protocols.engine import WeightBucket
from miles_core.weights.bucket import Bucket, Buffer, views
from miles_core.weights.transports.waiting import finish_copies

if TYPE_CHECKING:
    import torch

TIMEOUT = datetime.timedelta(seconds=300)
CHECK_SECONDS = 0.5


@dataclass(frozen=True)
class Meeting:
    """Where the members of a group meet. ``number`` sets the groups of one sender apart."""

    host: str
    port: int
    number: int
    members: int
    backend: str


_joined: dict[tuple[str, int], tuple[Meeting, Any]] = {}
"""Groups that this process has joined as an engine, by the sender's address: one lives as long as its sender uses it."""


class BroadcastSender:
    """See :class:`miles_core.weights.transports.Transport`."""

    name = "broadcast"
    slots = 2

    def __init__(self, host: str) -> None:
        from miles_core.accelerator.device import accelerator

        self._host = host
        self._accelerator = accelerator()
        self._device = self._accelerator.device()
        self._store: Any = None
        self._numbers = itertools.count()
        self._meeting: Meeting | None = None
        self._group: Any = None
        self._buffers: dict[int, torch.Tensor] = {}
        self._filled: dict[int, int] = {}
        self._works: dict[int, Any] = {}

    def begin(self, receivers: int) -> None:
        """Open a group for this many engines, unless there is one."""
        import torch.distributed as dist

        if self._meeting is not None and self._meeting.members == receivers + 1:
            return
        self._group = None
        if self._store is None:
            self._store = dist.TCPStore(  # type: ignore[attr-defined]
                self._host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT
            )
        collectives = self._accelerator.collectives
        self._meeting = Meeting(self._host, self._store.port, next(self._numbers), receivers + 1, collectives)

    def buffer(self, slot: int, nbytes: int) -> Buffer:
        """Memory of the device."""
        import torch

        if slot not in self._buffers or self._buffers[slot].numel() < nbytes:
            self._buffers[slot] = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        return _Whole(self._buffers[slot])

    def stage(self, slot: int, bucket: Bucket, receivers: int) -> list[dict[str, object]]:
        """Where to meet."""
        assert self._meeting is not None
        self._filled[slot] = bucket.nbytes
        return [dict(vars(self._meeting))] * receivers

    def transmit(self, slot: int, check: Callable[[], None]) -> None:
        """Send, without waiting for the end."""
        assert self._meeting is not None
        try:
            if self._group is None:
                self._group = self._meet(self._meeting, check)
            self._works[slot] = self._group.broadcast(self._buffers[slot][: self._filled[slot]], 0)
        except RuntimeError as error:
            raise not_met(self._meeting, error) from error

    def _meet(self, meeting: Meeting, check: Callable[[], None]) -> Any:
        """The group, as soon as every engine has joined."""
        # Joining blocks until all are there, and an engine that failed never comes.
        joining: Future[Any] = Future()
        threading.Thread(target=self._join_here, args=(joining, meeting), daemon=True).start()
        while True:
            with contextlib.suppress(TimeoutError):
                return joining.result(CHECK_SECONDS)
            check()

    def _join_here(self, joined: Future[Any], meeting: Meeting) -> None:
        try:
            self._accelerator.use(self._device)
            joined.set_result(self._join(meeting))
        except BaseException as error:
            joined.set_exception(error)

    def _join(self, meeting: Meeting) -> Any:
        return init_group(meeting, self._store, 0)

    def release(self, slot: int) -> None:
        """Wait for the end."""
        work = self._works.pop(slot, None)
        if work is not None:
            work.wait()
            finish_copies(self._device)

    def end(self) -> None:
        """Give back the buffers."""
        self._buffers.clear()
        self._accelerator.release_cache()

    def abort(self) -> None:
        """Leave the group; a new one is opened for the next publish."""
        if self._group is not None:
            self._group.abort()
        self._group = self._meeting = None
        self._works.clear()
        self.end()

    def close(self) -> None:
        """Leave the group and close the store."""
        self.abort()
        self._store = None


@dataclass(frozen=True)
class _Whole:
    flat: torch.Tensor

    def reserve(self, nbytes: int) -> torch.Tensor:
        assert nbytes <= self.flat.numel()
        return self.flat


def init_group(meeting: Meeting, store: Any, rank: int) -> Any:
    """The process group of a meeting, apart from the default group of the process. Returns when every member is there.

    Args:
        store: the ``TCPStore`` at the meeting's address.
        rank: 0 is the sender.
    """
    import torch.distributed as dist

    named = dist.PrefixStore(f"weights-{meeting.number}", store)  # type: ignore[attr-defined]
    if meeting.backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = TIMEOUT
        return dist.ProcessGroupNCCL(named, rank, meeting.members, options)
    return dist.ProcessGroupGloo(named, rank, meeting.members, timeout=TIMEOUT)


def open_sender(*, run_dir: Path, label: str, host: str, ranks: int) -> BroadcastSender:
    """See :func:`miles_core.weights.transports.open_transport`."""
    return BroadcastSender(host)


@contextlib.contextmanager
def open_received(bucket: WeightBucket, device: torch.device | str) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """See :func:`miles_core.weights.transports.open_bucket`. The tensors are on ``device`` with NCCL, on the CPU with gloo."""
    import torch

    meeting = Meeting(**bucket.handle)  # type: ignore[arg-type]
    place = torch.device(device) if meeting.backend == "nccl" else torch.device("cpu")
    flat = torch.empty(bucket.nbytes, dtype=torch.uint8, device=place)
    try:
        _join(meeting).broadcast(flat, 0).wait()
    except RuntimeError as error:
        _joined.pop((meeting.host, meeting.port), None)
        raise not_met(meeting, error) from error
    yield views(flat, bucket.entries)
    finish_copies(device)


def _join(meeting: Meeting) -> Any:
    """The group of a meeting, joined on the first bucket."""
    import torch.distributed as dist

    held = _joined.get((meeting.host, meeting.port))
    if held is None or held[0] != meeting:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=TIMEOUT
        )
        rank = store.add(f"joined-{meeting.number}", 1)
        _joined[meeting.host, meeting.port] = held = (meeting, init_group(meeting, store, rank))
    return held[1]


def not_met(meeting: Meeting, error: Exception) -> RunError:
    """The error of a group that did not come about, or broke."""
    return RunError(
        "M475",
        f"the weight broadcast of {meeting.members} processes at {meeting.host}:{meeting.port} failed",
        owner="miles-core",
        why=str(error).splitlines()[0] if str(error) else type(error).__name__,
        fix="see the engines' logs, and that every machine can reach that address",
    )
