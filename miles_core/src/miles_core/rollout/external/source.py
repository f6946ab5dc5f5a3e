"""Rollouts taken from the buffer."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from miles_core.errors import RunError
from miles_core.protocols import Filter
from miles_core.rollout.collector import Collected
from miles_core.rollout.external.client import BufferClient
from miles_core.rollout.external.trajectory import Trajectory, read_id, read_trajectory
from miles_core.rollout.grading import Tally
from miles_core.rollout.sieve import Sieve
from miles_core.runtime.experts import Experts
from miles_core.samples import Sample

FRUITLESS_ROLLOUTS = 3
"""Rollouts' worth of groups in a row of which none can be used, after which the run fails."""
LONGEST_WAIT = 3.0
SHOWN = 3

Decode = Callable[[Sequence[int]], str]


@dataclass
class _Round:
    """One rollout being collected."""

    found: Collected
    sieve: Sieve
    fetched: int = 0
    invalid: int = 0
    duplicates: int = 0
    incomplete: int = 0
    surplus: int = 0
    fruitless: int = 0
    details: list[str] = field(default_factory=list)
    store: dict[str, Any] = field(default_factory=dict)


@dataclass
class ExternalSource:
    """Takes groups from the buffer, each once, by its id.

    A group that was taken is acknowledged when a crash cannot bring the run back to before it: with ``durable``, when a state that
    has it was saved; else when its rollout is over. Until then the buffer keeps it.

    Args:
        payload: what agents are told, see ``docs/rollout-buffer.md``.
        n_samples: trajectories of a group.
        ratio: share of a rollout's groups that is enough.
        vocabulary, max_tokens, experts: see :func:`read_trajectory`.
        durable: whether the run saves states.
        failure_limit: share of a rollout's trajectories that may be unusable.
        wait: seconds between calls while nothing is ready, at first; each is twice as long as the one before.
    """

    client: BufferClient
    payload: dict[str, Any]
    filters: Sequence[Filter]
    decode: Decode
    n_samples: int
    ratio: float = 1.0
    vocabulary: int | None = None
    max_tokens: int | None = None
    durable: bool = False
    failure_limit: float = 1.0
    wait: float = 0.1
    experts: Experts | None = None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _used: dict[str, None] = field(default_factory=dict)
    _held: dict[str, None] = field(default_factory=dict)
    _safe: dict[str, None] = field(default_factory=dict)
    _saving: dict[str, None] = field(default_factory=dict)
    _started: bool = False
    _groups: int = 0
    _samples: int = 0

    async def collect(self, count: int, advance: Callable[[int, int], None]) -> Collected:
        """At most ``count`` groups, and at least the share of them that is enough.

        Raises:
            RunError: the buffer failed (M497, M498), agents post nothing that can be used (M499), or the filters drop everything
                (M401).
        """
        started, failures = time.perf_counter(), self.client.failures
        if not self._started:
            await self.client.start({**self.payload, "run_id": self.run_id, "skip_instance_ids": list(self._used)})
            self._started = True
        if not self.durable:
            self._safe |= self._held
        need, wait = math.ceil(self.ratio * count), self.wait
        round_ = _Round(Collected([], Tally(), submissions=1), Sieve(self.filters, count))
        found = round_.found
        while len(found.groups) < need:
            advance(len(found.groups) * self.n_samples, count * self.n_samples)
            if await self._fetch(count - len(found.groups), count, round_):
                wait = self.wait
            else:
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT)
        await self.client.rest(self.run_id, list(self._held))
        advance(len(found.groups) * self.n_samples, len(found.groups) * self.n_samples)
        found.tokens = sum(sample.response_length for sample in found.generated)
        found.metrics = {
            "rollout_buffer/trajectories": float(round_.fetched),
            "rollout_buffer/groups": float(len(found.groups)),
            "rollout_buffer/collection_ratio": len(found.groups) / count,
            "rollout_buffer/invalid": float(round_.invalid),
            "rollout_buffer/duplicates": float(round_.duplicates),
            "rollout_buffer/incomplete_groups": float(round_.incomplete),
            "rollout_buffer/surplus_trajectories": float(round_.surplus),
            "rollout_buffer/failed_calls": float(self.client.failures - failures),
            "perf/rollout_buffer_time": time.perf_counter() - started,
        }
        numbers = {name: value for name, value in round_.store.items() if isinstance(value, int) and not isinstance(value, bool)}
        found.metrics |= {f"rollout_buffer/server/{name}": float(value) for name, value in numbers.items()}
        return found

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` takes; plain JSON. Asked for only to be saved: the state before it is on disk by then."""
        self._safe |= {key: None for key in self._saving if key in self._held}
        self._saving = dict(self._held)
        return {"run_id": self.run_id, "used": list(self._used), "groups": self._groups, "samples": self._samples}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.run_id, self._groups, self._samples = state["run_id"], state["groups"], state["samples"]
        self._used = dict.fromkeys(state["used"])
        self._held, self._safe, self._saving, self._started = {}, {}, {}, False

    async def _fetch(self, missing: int, count: int, round_: _Round) -> bool:
        """Take what is ready; whether that was anything."""
        done = list(self._safe)
        held = [key for key in self._held if key not in self._safe]
        items, meta = await self.client.fetch(self.run_id, missing, held, done)
        for key in done:
            self._held.pop(key, None)
            self._safe.pop(key, None)
        round_.store = meta["store"] if isinstance(meta.get("store"), dict) else {}
        round_.fetched += len(items)
        for key, trajectories in self._sorted(items, round_).items():
            self._decide(key, trajectories, round_)
        seen = round_.fetched - round_.duplicates
        bad = seen >= count * self.n_samples and round_.invalid / seen > self.failure_limit
        if bad or round_.fruitless >= FRUITLESS_ROLLOUTS * count:
            raise RunError(
                "M499",
                f"{round_.invalid} of {seen} trajectories cannot be used, and {round_.incomplete} groups are incomplete",
                owner=f"rollout buffer {self.client.url}",
                why="; ".join(round_.details),
                fix="repair the agents, or raise --reward-failure-limit",
            )
        return bool(items)

    def _sorted(self, items: Sequence[Any], round_: _Round) -> dict[str, list[Trajectory]]:
        """Usable trajectories by group; a group all of whose trajectories are bad has none."""
        groups: dict[str, list[Trajectory]] = {}
        seen: set[tuple[str, str]] = set()
        for item in items:
            try:
                key = read_id(item.get("instance_id") if isinstance(item, dict) else None, "instance_id")
                if key in self._used:
                    round_.duplicates += 1
                    if key not in self._held:
                        self._safe[key] = None
                    continue
                groups.setdefault(key, [])
                trajectory = read_trajectory(item, self.vocabulary, self.max_tokens, self.experts)
            except ValueError as error:
                round_.invalid += 1
                if len(round_.details) < SHOWN:
                    named = item.get("uid") if isinstance(item, dict) else None
                    round_.details.append(f"trajectory {named!r:.40}: {error}")
                continue
            if (key, trajectory.uid) in seen:
                round_.duplicates += 1
                continue
            seen.add((key, trajectory.uid))
            groups[key].append(trajectory)
        return groups

    def _decide(self, key: str, trajectories: Sequence[Trajectory], round_: _Round) -> None:
        self._used[key] = None
        self._held[key] = None
        if len(trajectories) < self.n_samples:
            round_.incomplete += 1
            round_.fruitless += 1
            return
        round_.fruitless = 0
        round_.surplus += len(trajectories) - self.n_samples
        group: list[Sample] = []
        for each in trajectories[: self.n_samples]:
            group.append(each.sample(self._samples, self._groups, self.decode(each.response_ids)))
            self._samples += 1
        self._groups += 1
        round_.found.finished.append(group)
        round_.found.tally.graded += len(group)
        if round_.sieve.keeps(group, round_.found):
            round_.found.groups.append(group)
