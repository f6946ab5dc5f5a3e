"""Several senders before one engine that spans their devices: each has the bytes on its own, and the first tells the engine of all.

Every rank of the block publishes the same export; those but the first have no engine to call. They fill equal buckets in the same
order, so that handles and acknowledgements meet by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from miles_core.weights.bucket import Bucket, Buffer

if TYPE_CHECKING:
    from miles_core.weights.transports import Transport


class BlockTransport:
    """See :class:`miles_core.weights.transports.Transport`. A handle is ``{"ranks": [...]}``, one for each rank of the block.

    Args:
        inner: of this rank, owned from here on.
        group: process group of the block, for objects (gloo).
        ranks: of its members in the whole group; the first has the engine.
    """

    def __init__(self, inner: Transport, group: Any, ranks: Sequence[int]) -> None:
        self._inner, self._group, self._ranks = inner, group, tuple(ranks)
        self.name, self.slots = inner.name, inner.slots

    def begin(self, receivers: int) -> None:
        """A publish begins; every rank has one receiver, which is one of the engine's processes."""
        self._inner.begin(1)

    def buffer(self, slot: int, nbytes: int) -> Buffer:
        """Of this rank."""
        return self._inner.buffer(slot, nbytes)

    def stage(self, slot: int, bucket: Bucket, receivers: int) -> list[dict[str, object]]:
        """The handles of all ranks, on the first."""
        import torch.distributed as dist

        (mine,) = self._inner.stage(slot, bucket, 1)
        found: list[Any] | None = [None] * len(self._ranks) if dist.get_rank() == self._ranks[0] else None
        dist.gather_object(mine, found, dst=self._ranks[0], group=self._group)
        return [{"ranks": found}] * receivers

    def transmit(self, slot: int, check: Callable[[], None]) -> None:
        """Of this rank."""
        self._inner.transmit(slot, check)

    def release(self, slot: int) -> None:
        """Wait until the first knows that the engine has copied the bucket."""
        import torch.distributed as dist

        dist.barrier(group=self._group)
        self._inner.release(slot)

    def end(self) -> None:
        """Of this rank."""
        self._inner.end()

    def abort(self) -> None:
        """Of this rank; the others fail at their next meeting."""
        self._inner.abort()

    def close(self) -> None:
        """Of this rank."""
        self._inner.close()
