"""Collecting one rollout: groups are generated, graded and filtered until there are enough."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from miles_core.data.source import PromptSource
from miles_core.errors import RunError
from miles_core.protocols import Filter
from miles_core.rollout.grading import Grader, Tally
from miles_core.rollout.sampling import SamplingPlan, generate
from miles_core.samples import Sample
from miles_core.serving.client import EngineClient

FRUITLESS_WAVES = 20


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


@dataclass
class Collected:
    """Exactly the groups that were asked for, in the order of their prompts, and how it went."""

    groups: list[list[Sample]]
    tally: Tally
    generated: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    waves: int = 0


@dataclass
class Collector:
    """Collects rollouts.

    Groups go out in waves, each as one ordered batch and each just as large as what is still missing: no accepted group is
    thrown away, none waits for weights that did not make it, and a rerun makes the same waves. Grading goes on while the rest
    of a wave is generated.
    """

    client: EngineClient
    source: PromptSource
    grader: Grader
    filters: Sequence[Filter]
    n_samples: int
    failure_limit: float = 1.0

    async def collect(self, count: int, plan: SamplingPlan, advance: Callable[[int, int], None]) -> Collected:
        """Collect ``count`` groups.

        Args:
            advance: told ``(done, total)`` samples as they are graded.

        Raises:
            RunError: the filters drop everything (M401), more than the share ``failure_limit`` could not be graded (M402), an
                engine failed (M44x), or the reward broke its contract (M403, M404).
        """
        collected = Collected([], Tally())
        fruitless = 0
        while len(collected.groups) < count:
            missing = count - len(collected.groups)
            accepted = await self._wave(missing, plan, collected, advance)
            collected.groups += accepted
            collected.waves += 1
            # Here and not at the end: a filter that drops what could not be graded would have waves go on.
            collected.tally.check(self.failure_limit, self.grader.name)
            fruitless = 0 if accepted else fruitless + 1
            if fruitless >= FRUITLESS_WAVES:
                reasons = ", ".join(f"{reason} {n}" for reason, n in collected.dropped.most_common())
                raise RunError(
                    "M401",
                    f"the filters dropped every group of {FRUITLESS_WAVES} waves in a row",
                    owner="miles-core",
                    why=f"dropped so far: {reasons}",
                    fix="use prompts that are neither always solved nor never, or another --dynamic-sampling-filter-path",
                )
        return collected

    async def _wave(
        self, count: int, plan: SamplingPlan, collected: Collected, advance: Callable[[int, int], None]
    ) -> list[list[Sample]]:
        groups = self.source.next_groups(count, self.n_samples)
        before = len(collected.generated)
        total = before + count * self.n_samples
        advance(before, total)
        await generate_graded(self.client, groups, plan, self.grader, collected.tally, lambda done: advance(before + done, total))
        for group in groups:
            collected.generated += group
        return [group for group in groups if self._keeps(group, collected.dropped)]

    def _keeps(self, group: Sequence[Sample], dropped: Counter[str]) -> bool:
        for filter_ in self.filters:
            decision = filter_(group)
            if not decision.keep:
                dropped[decision.reason or type(filter_).__name__] += 1
                return False
        return True
