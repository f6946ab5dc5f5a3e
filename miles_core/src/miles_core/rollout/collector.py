"""Collecting one rollout: groups are generated, graded and filtered until there are enough."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from miles_core.data.source import PromptSource
from miles_core.protocols import Filter
from miles_core.rollout.buffer import GroupBuffer
from miles_core.rollout.grading import Grader, Tally
from miles_core.rollout.sampling import SamplingPlan, generate
from miles_core.rollout.sieve import Sieve
from miles_core.samples import Sample
from miles_core.serving.client import EngineClient

ABORT_INTERVAL = 0.2
"""Seconds after which engines are asked again to end what still runs: a request may reach one behind the call that ends all."""

Group = list[Sample]


async def generate_graded(
    client: EngineClient,
    groups: Sequence[Sequence[Sample]],
    plan: SamplingPlan,
    grader: Grader,
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    """Complete and grade every sample in place. A group is graded as soon as it is whole, beside all others.

    Args:
        advance: told how many samples are graded, group after group.

    Raises:
        RunError: the first error of an engine or of the reward; everything else is ended.
    """
    done = 0

    async def grade(group: Sequence[Sample]) -> None:
        nonlocal done
        await grader.grade(group, tally)
        done += len(group)
        advance(done)

    try:
        async with asyncio.TaskGroup() as grading, aclosing(generate(client, groups, plan)) as completed:
            async for group in completed:
                grading.create_task(grade(group))
    except ExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__


@dataclass(frozen=True)
class Refill:
    """When groups go out, and what becomes of those that are not needed.

    Attributes:
        unit: groups that go out together, whenever those on their way and those accepted are fewer than the rollout takes. None:
            exactly as many as are missing, once nothing is on its way. Then nothing is surplus, and a rerun does the same.
        partial: keep unfinished groups for the next rollout; else their prompts go back to the source.
        mask_earlier: train only on tokens that were made after a group was taken up again.
    """

    unit: int | None = None
    partial: bool = False
    mask_earlier: bool = False


@dataclass
class Collected:
    """Exactly the groups that were asked for, in the order of their prompts, and how it went.

    Attributes:
        finished: groups that were graded in this rollout, in the order of their prompts; the accepted, the dropped, the surplus.
        dropped, reasons: how many groups were dropped for each reason, and the reason of each, by its number.
        submissions: lots of groups that went out.
        resumed_groups, resumed_samples: taken from the buffer; of these samples, the unfinished ones.
        surplus, kept, returned: groups not needed: accepted, unfinished and in the buffer, and back in the source.
        tokens: made in this rollout.
        metrics: that a function which collected the rollout made itself.
    """

    groups: list[Group]
    tally: Tally
    finished: list[Group] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    reasons: dict[int, str] = field(default_factory=dict)
    submissions: int = 0
    resumed_groups: int = 0
    resumed_samples: int = 0
    surplus: int = 0
    kept: int = 0
    returned: int = 0
    tokens: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def generated(self) -> list[Sample]:
        """The samples that were graded in this rollout."""
        return [sample for group in self.finished for sample in group]


@dataclass
class Collector:
    """Collects rollouts.

    Groups go out as :class:`Refill` says, those in the buffer first. No accepted group is thrown away: one that is not needed
    waits in the buffer, and goes into the next rollout as it is. Grading goes on while others are generated.
    """

    client: EngineClient
    source: PromptSource
    grader: Grader
    filters: Sequence[Filter]
    n_samples: int
    failure_limit: float = 1.0
    buffer: GroupBuffer = field(default_factory=GroupBuffer)
    refill: Refill = field(default_factory=Refill)

    async def collect(self, count: int, plan: SamplingPlan, advance: Callable[[int, int], None], rollout_id: int = 0) -> Collected:
        """Collect ``count`` groups.

        Args:
            advance: told ``(done, total)`` samples as they are graded.

        Raises:
            RunError: the filters drop everything (M401), more than the share ``failure_limit`` could not be graded (M402), the
                buffer filter breaks its contract (M406), engines cut everything off (M405) or fail (M44x), or the reward broke
                its contract (M403, M404).
        """
        round_ = _Round(self, count, plan, advance, rollout_id)
        try:
            async with asyncio.TaskGroup() as tasks:
                await round_.run(tasks)
        except ExceptionGroup as errors:
            first = errors.exceptions[0]
            raise first from first.__cause__
        return round_.settled()


class _Round:
    """One rollout being collected."""

    def __init__(
        self, collector: Collector, count: int, plan: SamplingPlan, advance: Callable[[int, int], None], rollout_id: int
    ) -> None:
        self._its = collector
        self._count = count
        self._plan = plan
        self._advance = advance
        self._rollout_id = rollout_id
        self._found = Collected([], Tally())
        self._pending: dict[int, Group] = {}
        self._taken: set[int] = set()
        self._graded: asyncio.Queue[Group] = asyncio.Queue()
        self._generating: set[asyncio.Task[None]] = set()
        self._before = 0
        self._total = 0
        self._done = 0
        self._sieve = Sieve(collector.filters, count)
        self._stopping = False

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Until there are enough groups and nothing runs any more."""
        found = self._found
        while len(found.groups) < self._count:
            while missing := self._missing():
                self._submit(missing, tasks)
            for group in await self._ready():
                self._decide(group)
        await self._stop()

    def settled(self) -> Collected:
        """What was collected; everything that is left has found its place."""
        found, its = self._found, self._its
        while not self._graded.empty():
            self._decide(self._graded.get_nowait())
        left = sorted(self._pending.values(), key=_number)
        kept = [group for group in left if _number(group) in self._taken or (its.refill.partial and _tokens(group))]
        numbers = {_number(group) for group in kept}
        returned = [_number(group) for group in left if _number(group) not in numbers]
        accepted = sorted(found.groups[self._count :], key=_number)
        found.groups = sorted(found.groups[: self._count], key=_number)
        found.finished.sort(key=_number)
        found.surplus, found.kept, found.returned = len(accepted), len(kept), len(returned)
        found.tokens = sum(map(_tokens, [*found.finished, *kept])) - self._before
        its.buffer.settle()
        its.buffer.add(sorted([*accepted, *kept], key=_number))
        its.source.settle(returned)
        found.tally.check(its.failure_limit, its.grader.name)
        self._advance(self._done, self._done)
        return found

    def _missing(self) -> int:
        """How many groups go out now."""
        unit, accepted = self._its.refill.unit, len(self._found.groups)
        if unit is None:
            return 0 if self._pending else self._count - accepted
        return unit if len(self._pending) + accepted < self._count else 0

    def _submit(self, count: int, tasks: asyncio.TaskGroup) -> None:
        its, found = self._its, self._found
        taken = its.buffer.take(self._rollout_id, count)
        for group in taken:
            self._take_up(group)
        groups = [group for group in taken if not _whole(group)]
        self._taken |= {_number(group) for group in groups}
        self._pending |= {_number(group): group for group in groups}
        if len(found.groups) >= self._count:
            return
        if len(taken) < count:
            groups += its.source.next_groups(count - len(taken), its.n_samples)
            self._pending |= {_number(group): group for group in groups}
        found.submissions += 1
        self._total += sum(map(len, groups))
        self._advance(self._done, self._total)
        task = tasks.create_task(self._generate(groups, tasks))
        self._generating.add(task)
        task.add_done_callback(self._generating.discard)

    def _take_up(self, group: Group) -> None:
        """A group from the buffer: whole ones were accepted when they were graded."""
        if self._its.refill.mask_earlier:
            for sample in group:
                if sample.response_ids:
                    sample.loss_mask = [0] * sample.response_length
        self._found.resumed_groups += 1
        if _whole(group):
            self._found.groups.append(group)
        else:
            self._before += _tokens(group)
            self._found.resumed_samples += sum(not sample.finished for sample in group)

    async def _generate(self, groups: Sequence[Group], tasks: asyncio.TaskGroup) -> None:
        async with aclosing(generate(self._its.client, groups, self._plan, lambda: self._stopping)) as completed:
            async for group in completed:
                tasks.create_task(self._grade(self._pending[group[0].group_index]))

    async def _grade(self, group: Group) -> None:
        await self._its.grader.grade(group, self._found.tally)
        self._done += len(group)
        self._advance(self._done, self._total)
        self._graded.put_nowait(group)

    async def _ready(self) -> list[Group]:
        """Groups to decide on: whatever is graded, or all that went out where the order of decisions must not depend on time."""
        if not self._pending:
            return []
        ready = [await self._graded.get()]
        while not self._graded.empty() or (self._its.refill.unit is None and len(ready) < len(self._pending)):
            ready.append(await self._graded.get())
        return sorted(ready, key=_number)

    def _decide(self, group: Group) -> None:
        its, found = self._its, self._found
        del self._pending[_number(group)]
        found.finished.append(group)
        # Here and not only at the end: a filter that drops what could not be graded would have it go on for ever.
        if found.tally.graded + found.tally.failures >= self._count * its.n_samples:
            found.tally.check(its.failure_limit, its.grader.name)
        if self._sieve.keeps(group, found):
            found.groups.append(group)

    async def _stop(self) -> None:
        """End generation. What is being graded is waited for by the caller's task group."""
        self._stopping = True
        if not self._its.refill.partial:
            for task in self._generating:
                task.cancel()
        while running := set(self._generating):
            # Engines that are told to abort answer with what they have.
            if self._its.refill.partial:
                await self._its.client.abort_all()
            await asyncio.wait(running, timeout=ABORT_INTERVAL)


def _whole(group: Group) -> bool:
    return all(sample.finished for sample in group)


def _number(group: Sequence[Sample]) -> int:
    return group[0].group_index


def _tokens(group: Sequence[Sample]) -> int:
    return sum(sample.response_length for sample in group)
