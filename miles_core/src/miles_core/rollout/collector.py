"""Collecting one rollout: groups are generated, graded and filtered until there are enough."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from miles_core.data.source import PromptSource
from miles_core.errors import RunError
from miles_core.protocols import Filter
from miles_core.rollout.grading import Grader, Tally
from miles_core.rollout.sampling import SamplingPlan, generate
from miles_core.samples import Sample
from miles_core.serving.client import EngineClient

FRUITLESS_WAVES = 20


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

    async def collect(self, count: int, plan: SamplingPlan, advance: Callable[[int, int], None]) -> Collected:
        """Collect ``count`` groups.

        Args:
            advance: told ``(done, total)`` samples as they are graded.

        Raises:
            RunError: the filters drop everything (M401), an engine failed (M44x), or the reward broke its contract.
        """
        collected = Collected([], Tally())
        fruitless = 0
        while len(collected.groups) < count:
            missing = count - len(collected.groups)
            accepted = await self._wave(missing, plan, collected, advance)
            collected.groups += accepted
            collected.waves += 1
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
        total = len(collected.generated) + count * self.n_samples
        done = len(collected.generated)
        advance(done, total)
        grading: list[asyncio.Task[None]] = []
        try:
            async for group in generate(self.client, groups, plan):
                grading.append(asyncio.create_task(self.grader.grade(group, collected.tally)))
                done += len(group)
                advance(done, total)
            for task in grading:
                await task
        finally:
            for task in grading:
                task.cancel()
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
