"""Groups that are generated all the time, and taken in lots as they are ready, none older than a bound on staleness."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from miles_core.data.source import PromptSource
from miles_core.rollout.buffer import GroupBuffer
from miles_core.rollout.collector import Collected
from miles_core.rollout.grading import Grader, Tally
from miles_core.rollout.sampling import SamplingPlan, generate
from miles_core.rollout.sieve import Sieve
from miles_core.runtime.loops.schedule import Schedule
from miles_core.samples import Sample, Status
from miles_core.serving.client import EngineClient

Group = list[Sample]


@dataclass
class Held:
    """A group that is on its way or ready.

    Attributes:
        oldest: version of its oldest token; at first the one that engines served when it went out.
        anew: what to save while it is on its way, where the source does not know it any more.
    """

    group: Group
    oldest: int
    anew: Group | None = None

    @property
    def number(self) -> int:
        """Of the group."""
        return self.group[0].group_index


@dataclass
class Lane:
    """One engine, and the samples that are on their way to it."""

    client: EngineClient
    load: int = 0


@dataclass
class Stream:
    """Keeps groups on their way, and hands out rollouts of ``count`` that are ready.

    When a token of version ``v`` is trained on, engines serve at most ``v + max_staleness``. A group has so a last rollout that it
    can be part of, which the schedule of the run tells. Three rules keep every group within it, and none is thrown away:

    - a group goes out only if all groups that there are, and it, fit into the rollouts up to the last one of a group that goes out
      now. That also bounds what is on its way and ready: ``(max_staleness + 1) * count`` groups where every rollout is published;
    - the oldest ready groups go first;
    - a rollout waits for a longer response only if there would be no room for it later.

    A group that is too old all the same (it comes from a saved state, and the options have changed) starts anew from its prompt.

    Args:
        lanes: the engines; a group goes to the one with the fewest samples.
        schedule: of the run.
        advance: told ``(done, total)`` samples since the last rollout.
    """

    lanes: Sequence[Lane]
    source: PromptSource
    grader: Grader
    sieve: Sieve
    n_samples: int
    count: int
    plan: SamplingPlan
    schedule: Schedule
    max_staleness: int
    failure_limit: float
    advance: Callable[[int, int], None]
    served: int = 0
    _published: int = -1
    _next: int = 0
    _again: list[Group] = field(default_factory=list)
    _pending: dict[int, Held] = field(default_factory=dict)
    _ready: dict[int, Held] = field(default_factory=dict)
    _found: Collected = field(default_factory=lambda: Collected([], Tally()))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _failure: BaseException | None = None

    def published(self, rollout_id: int, version: int) -> None:
        """Engines serve ``version`` since ``rollout_id`` was trained on. The first call begins to generate."""
        self.served, self._published = version, rollout_id
        self._next = max(self._next, rollout_id + 1)
        self._fill()

    async def take(self, rollout_id: int) -> Collected:
        """The groups of a rollout, in the order of their prompts, and everything that was graded since the last one.

        Raises:
            RunError: as :meth:`miles_core.rollout.collector.Collector.collect` does.
        """
        self._next = rollout_id
        self._renew()
        self._fill()
        while (chosen := self._chosen()) is None:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        found, self._found = self._found, Collected([], Tally())
        found.groups = [self._ready.pop(number).group for number in sorted(chosen)]
        found.finished.sort(key=lambda group: group[0].group_index)
        found.tally.check(self.failure_limit, self.grader.name)
        found.surplus, found.kept = len(self._ready), len(self._pending)
        self._next = rollout_id + 1
        self._fill()
        return found

    def state(self) -> list[list[dict[str, Any]]]:
        """Groups that are ready, as a :class:`GroupBuffer` saves them; the prompts of those on their way are the source's state."""
        ready = [self._ready[number].group for number in sorted(self._ready)]
        anew = [held.anew for held in self._pending.values() if held.anew is not None]
        return GroupBuffer(groups=[*ready, *anew, *self._again]).state()

    def load_state(self, state: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Go on from a saved state; before the first :meth:`published`.

        Raises:
            UsageError: its groups have another number of samples (M409).
        """
        buffer = GroupBuffer()
        buffer.load_state(state, self.n_samples)
        whole = [all(sample.finished for sample in group) for group in buffer.groups]
        self._ready = {
            group[0].group_index: Held(group, _oldest(group, 0)) for group, ended in zip(buffer.groups, whole, strict=True) if ended
        }
        self._again = [group for group, ended in zip(buffer.groups, whole, strict=True) if not ended]

    async def close(self) -> None:
        """End what is on its way, and the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self.lanes:
            await lane.client.close()

    def _last(self, oldest: int) -> int:
        """The last rollout that may have a token of this version: none to come when it is too old."""
        left = oldest + self.max_staleness - self.served
        if left < 0:
            return self._published
        for rollout_id in range(self._published + 1, self.schedule.total):
            if self.schedule.publishes_after(rollout_id):
                if left == 0:
                    return rollout_id
                left -= 1
        return self.schedule.total - 1

    def _fill(self) -> None:
        """Send out what there is room for."""
        room = (self._last(self.served) + 1 - self._next) * self.count - len(self._pending) - len(self._ready)
        for _ in range(room if self._failure is None else 0):
            if self._again:
                self._found.resumed_groups += 1
                group = self._again.pop(0)
                anew = [_fresh(sample) for sample in group]
                held = Held(group, _oldest(group, self.served), anew)
                if self._last(held.oldest) < self._next:
                    held = Held([_fresh(sample) for sample in group], self.served, anew)
            else:
                held = Held(self.source.next_groups(1, self.n_samples)[0], self.served)
            self._pending[held.number] = held
            task = asyncio.create_task(self._make(held))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        self._tell()

    def _renew(self) -> None:
        """Begin anew with what is too old."""
        for number, held in sorted(self._ready.items()):
            if self._last(held.oldest) < self._next:
                del self._ready[number]
                self._again.append([_fresh(sample) for sample in held.group])
                self._found.returned += 1

    async def _make(self, held: Held) -> None:
        lane = min(self.lanes, key=lambda each: each.load)
        size = len(held.group)
        self._found.submissions += 1
        lane.load += size
        try:
            async with aclosing(generate(lane.client, [held.group], self.plan)) as completed:
                async for _ in completed:
                    pass
        finally:
            lane.load -= size
        await self.grader.grade(held.group, self._found.tally)
        self._decide(held)

    def _decide(self, held: Held) -> None:
        found = self._found
        del self._pending[held.number]
        # From here on the group is ready, which is a state of its own, or dropped.
        self.source.use([held.number])
        found.finished.append(held.group)
        found.tokens += sum(sample.response_length for sample in held.group)
        # Here and not only at the end: a filter that drops what could not be graded would have it go on for ever.
        if found.tally.graded + found.tally.failures >= self.count * self.n_samples:
            found.tally.check(self.failure_limit, self.grader.name)
        if self.sieve.keeps(held.group, found):
            held.oldest = _oldest(held.group, held.oldest)
            self._ready[held.number] = held
        self._fill()
        self._changed.set()

    def _chosen(self) -> list[int] | None:
        """Numbers of the groups of the next rollout; None when it must wait."""
        oldest_first = sorted(self._ready.values(), key=lambda held: (held.oldest, held.number))
        chosen, rest = oldest_first[: self.count], oldest_first[self.count :]
        if len(chosen) < self.count:
            return None
        coming = [self._last(held.oldest) for held in self._pending.values()]
        left = coming + [self._last(held.oldest) for held in rest]
        for last in set(coming):
            if sum(each <= last for each in left) > (last - self._next) * self.count:
                return None
        return [held.number for held in chosen]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._changed.set()

    def _tell(self) -> None:
        done = sum(len(group) for group in self._found.finished)
        self.advance(done, done + len(self._pending) * self.n_samples)


def _oldest(group: Sequence[Sample], otherwise: int) -> int:
    return min((version for sample in group for version, tokens in sample.weight_versions if tokens), default=otherwise)


def _fresh(sample: Sample) -> Sample:
    """The sample as it was before anything was made of it."""
    return dataclasses.replace(
        sample,
        response_ids=[],
        response="",
        loss_mask=None,
        rollout_log_probs=None,
        weight_versions=[],
        routed_experts=None,
        status=Status.PENDING,
        score=None,
        reward=None,
        teacher_log_probs=None,
        removed=False,
    )
