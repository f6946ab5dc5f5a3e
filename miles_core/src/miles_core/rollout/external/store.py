"""What the buffer's server holds: groups that grow, wait, are out, and are done. Bounded, in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from miles_core.rollout.external.trajectory import read_id, read_trajectory
from miles_core.serving.wire import dumps

REMEMBERED = 1_000_000
"""Ids of groups that are done, whose trajectories are not taken again."""


class FullError(Exception):
    """There is no room for a trajectory now; later there may be."""


class OtherRunError(Exception):
    """No run is under way, or another than the one that is named."""


@dataclass
class _Group:
    born: float
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: int = 0


@dataclass
class Store:
    """Groups of trajectories of one run.

    A group that was handed out stays until the run acknowledges it. One that is out and that the run says it does not hold, since
    the answer got lost or the run went back to a saved state, waits again.

    Args:
        max_bytes: of all trajectories, as they were posted.
        group_timeout: seconds after which a group that is not whole is dropped.
        clock: seconds.
    """

    max_bytes: int
    group_timeout: float
    clock: Callable[[], float] = time.monotonic
    start: dict[str, Any] | None = None
    collecting: bool = False
    size: int = 0
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("stored", "duplicate", "invalid", "full", "expired", "evicted", "redelivered"), 0)
    )
    _growing: dict[str, _Group] = field(default_factory=dict)
    _ready: dict[str, _Group] = field(default_factory=dict)
    _out: dict[str, _Group] = field(default_factory=dict)
    _done: dict[str, None] = field(default_factory=dict)

    def begin(self, payload: dict[str, Any]) -> None:
        """Start a run, or go on with one; another run's trajectories are dropped.

        Raises:
            ValueError: the payload is none.
        """
        run_id = read_id(payload.get("run_id"), "run_id")
        skip = read_ids(payload.get("skip_instance_ids", []), "skip_instance_ids")
        if _group_size(payload) < 1:
            raise ValueError("num_repeat_per_sample is below 1")
        if self.start is None or self.start["run_id"] != run_id:
            self._growing, self._ready, self._out, self._done, self.size = {}, {}, {}, {}, 0
        self.start = {name: value for name, value in payload.items() if name != "skip_instance_ids"} | {"run_id": run_id}
        self.acknowledge(skip)
        for each in skip:
            self._forget(self._growing, each)
            self._forget(self._ready, each)

    def write(self, document: dict[str, Any], size: int) -> bool:
        """Take a trajectory of ``size`` bytes; False when it, its group, or enough of its group is there already.

        Raises:
            ValueError: it cannot be trained on.
            OtherRunError: it is not of the run that is under way.
            FullError: there is no room.
        """
        if self.start is None or str(document.get("run_id")) != self.start["run_id"]:
            raise OtherRunError("no run is under way" if self.start is None else f"the run is {self.start['run_id']}")
        try:
            trajectory = read_trajectory(document)
            # A number beyond the range of floats was read as infinite, and could not be sent on.
            dumps(document)
        except ValueError:
            self.counts["invalid"] += 1
            raise
        key = trajectory.instance_id
        if any(key in place for place in (self._ready, self._out, self._done)):
            self.counts["duplicate"] += 1
            return False
        if key in self._growing and trajectory.uid in self._growing[key].items:
            self.counts["duplicate"] += 1
            return False
        self._expire()
        # What is out is in the hands of the run, which needs it again only if it goes back to an earlier state.
        while self.size + size > self.max_bytes and self._out:
            self._finish(next(iter(self._out)))
            self.counts["evicted"] += 1
        if self.size + size > self.max_bytes:
            self.counts["full"] += 1
            raise FullError(f"{self.size} bytes of {self.max_bytes} wait to be trained on")
        group = self._growing.setdefault(key, _Group(self.clock()))
        group.items[trajectory.uid] = document
        group.size += size
        self.size += size
        self.counts["stored"] += 1
        if len(group.items) >= _group_size(self.start):
            self._ready[key] = self._growing.pop(key)
        return True

    def take(self, count: int, held: Collection[str]) -> list[list[dict[str, Any]]]:
        """At most ``count`` whole groups, the oldest first.

        Args:
            held: ids of groups that are out and that the run has.
        """
        self._expire()
        lost = [key for key in self._out if key not in held]
        self.counts["redelivered"] += len(lost)
        self._ready = {key: self._out.pop(key) for key in lost} | self._ready
        taken = list(self._ready)[:count]
        self._out |= {key: self._ready.pop(key) for key in taken}
        return [list(self._out[key].items.values()) for key in taken]

    def acknowledge(self, keys: Iterable[str]) -> None:
        """The run will not need these groups again."""
        for key in keys:
            self._finish(key)

    def facts(self) -> dict[str, int]:
        """Numbers to watch."""
        self._expire()
        places = {"growing_groups": self._growing, "ready_groups": self._ready, "out_groups": self._out}
        return {name: len(place) for name, place in places.items()} | {"bytes": self.size} | self.counts

    def _finish(self, key: str) -> None:
        self._forget(self._out, key)
        self._done[key] = None
        if len(self._done) > REMEMBERED:
            del self._done[next(iter(self._done))]

    def _forget(self, place: dict[str, _Group], key: str) -> None:
        if key in place:
            self.size -= place.pop(key).size

    def _expire(self) -> None:
        oldest = self.clock() - self.group_timeout
        # Groups are in the order of their first trajectory.
        while self._growing and next(iter(self._growing.values())).born < oldest:
            self._forget(self._growing, next(iter(self._growing)))
            self.counts["expired"] += 1


def read_ids(value: Any, name: str) -> list[str]:
    """A list of ids.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return [read_id(each, name) for each in value]


def _group_size(payload: dict[str, Any]) -> int:
    try:
        return int(payload["num_repeat_per_sample"])
    except (KeyError, TypeError, ValueError):
        raise ValueError("num_repeat_per_sample is missing, or no number") from None
