"""Weights by broadcast, tensor by tensor, in a process group that a server's own ranks join.

For engines that are servers of their own, as SGLang's: told of an address, a group name and ranks, each of a server's processes
makes the group by ``torch.distributed``, and takes the tensors that a request names in the order in which it names them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from miles_core.errors import RunError
from miles_core.weights.bucket import Bucket, views
from miles_core.weights.transports.broadcast import TIMEOUT, BroadcastSender, Meeting, not_met

if TYPE_CHECKING:
    from miles_core.protocols.engine import WeightBucket

_PREFIX = {"nccl": "cuda", "gloo": "cpu"}
"""Under which torch keeps what a group's members tell each other: the first device of the backend."""


class ProcessGroupSender(BroadcastSender):
    """See :class:`miles_core.weights.transports.Transport`.

    Args:
        host: address of this process.
        label: of the sender; it names the groups.
        ranks: processes of one receiver, each with all of a receiver's bytes.
    """

    name = "process_group"

    def __init__(self, host: str, label: str, ranks: int) -> None:
        super().__init__(host)
        self._label = label
        self._ranks = ranks
        self._buckets: dict[int, Bucket] = {}
        self._all_works: dict[int, list[Any]] = {}

    def begin(self, receivers: int) -> None:
        """Open a group for every process of this many receivers, unless there is one."""
        super().begin(receivers * self._ranks)

    def stage(self, slot: int, bucket: Bucket, receivers: int) -> list[dict[str, object]]:
        """How to join: what SGLang's ``/init_weights_update_group`` takes."""
        assert self._meeting is not None
        self._buckets[slot] = bucket
        shared: dict[str, object] = {
            "master_address": self._meeting.host,
            "master_port": self._meeting.port,
            "world_size": self._meeting.members,
            "group_name": self._group_name(self._meeting),
            "backend": self._meeting.backend,
        }
        return [{**shared, "rank_offset": 1 + receiver * self._ranks} for receiver in range(receivers)]

    def transmit(self, slot: int, check: Callable[[], None]) -> None:
        """Send every tensor in order, without waiting for the end."""
        assert self._meeting is not None
        bucket = self._buckets[slot]
        try:
            if self._group is None:
                self._group = self._meet(self._meeting, check)
            tensors = (tensor for _, tensor in views(bucket.flat, bucket.entries))
            self._all_works[slot] = [self._group.broadcast(tensor, 0) for tensor in tensors]
        except RuntimeError as error:
            raise not_met(self._meeting, error) from error

    def release(self, slot: int) -> None:
        """Wait for the end."""
        *first, last = self._all_works.pop(slot, [None])
        for work in first:
            work.wait()
        self._works[slot] = last
        super().release(slot)

    def abort(self) -> None:
        """Leave the group; a new one is opened for the next publish."""
        self._all_works.clear()
        super().abort()

    def _join(self, meeting: Meeting) -> Any:
        import torch.distributed as dist

        name = self._group_name(meeting)
        store = self._store
        for prefix in (name, f"{name}/", f"{_PREFIX[meeting.backend]}/"):
            store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        if meeting.backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = TIMEOUT
            return dist.ProcessGroupNCCL(store, 0, meeting.members, options)
        return dist.ProcessGroupGloo(store, 0, meeting.members, timeout=TIMEOUT)

    def _group_name(self, meeting: Meeting) -> str:
        return f"miles-{self._label}-{meeting.port}-{meeting.number}"


def open_sender(*, run_dir: Path, label: str, host: str, ranks: int) -> ProcessGroupSender:
    """See :func:`miles_core.weights.transports.open_transport`."""
    return ProcessGroupSender(host, label, ranks)


def open_received(bucket: WeightBucket, device: Any) -> NoReturn:
    """Refuse: a server takes these buckets itself.

    Raises:
        RunError: M475.
    """
    what = "a bucket of the transport process_group can be opened by a server's own processes only"
    raise RunError("M475", what, owner="miles-core", fix="take broadcast for an engine in this process")
