"""Collecting: exactly as many groups as asked for, in order, none lost and none sampled twice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from miles_core.data.source import Keys, PromptSet, PromptSource
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import RunError
from miles_core.protocols import Decision
from miles_core.rollout.collector import Collected, Collector
from miles_core.rollout.grading import Grader
from miles_core.rollout.sampling import SamplingPlan
from miles_core.rollout.sieve import FRUITLESS_ROLLOUTS
from miles_core.samples import Invalid, Sample, SamplingParams, Scored

PLAN = SamplingPlan(SamplingParams(20), None, 5, "rollout-0")
Collect = Callable[..., Collected]


@pytest.fixture(scope="module")
def tokenizer(request: pytest.FixtureRequest) -> PromptTokenizer:
    return PromptTokenizer(request.getfixturevalue("checkpoint"), apply_chat_template=False)


@pytest.fixture
def source(tokenizer: PromptTokenizer, tmp_path: Path) -> PromptSource:
    """30 prompts, one after the other."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"input": f"q{i}"}) + "\n" for i in range(30)), encoding="utf-8")
    return PromptSource(PromptSet(str(path), Keys(), tokenizer), shuffle=False, seed=0)


@pytest.fixture
def collect(make_client, source: PromptSource, judge) -> Collect:
    """Collects groups of 3 with filters and verdicts."""

    def run(count: int, *filters, verdict=lambda s: Scored(float(s.index)), limit: float = 1.0, progress=None) -> Collected:
        client = make_client(lambda text, seed: text)
        collector = Collector(client, source, Grader(judge(verdict), "judge", None), filters, 3, limit)
        seen: list[tuple[int, int]] = []
        collected = asyncio.run(collector.collect(count, PLAN, lambda done, total: seen.append((done, total))))
        rids = [r.rid for batch in client.oracle.batches for r in batch]
        assert len(set(rids)) == len(rids) == len(collected.generated)
        assert seen[-1] == (len(rids), len(rids))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        return collected

    return run


def keep_if(test: Callable[[int], bool], reason: str = "unlucky") -> Callable[[Sequence[Sample]], Decision]:
    return lambda group: Decision(test(group[0].group_index), reason)


def numbers(collected: Collected) -> list[int]:
    return [group[0].group_index for group in collected.groups]


def test_without_filters_one_wave_is_enough(collect: Collect) -> None:
    collected = collect(4)
    assert numbers(collected) == [0, 1, 2, 3]
    assert [[s.index for s in group] for group in collected.groups] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert (collected.submissions, collected.tally.graded) == (1, 12)
    assert all(s.reward == s.index and s.response.startswith("q") for group in collected.groups for s in group)


def test_dropped_groups_are_replaced_by_the_next_prompts(collect: Collect) -> None:
    collected = collect(4, keep_if(lambda g: g % 2 == 0))
    assert numbers(collected) == [0, 2, 4, 6]
    # Waves of 4, 2 and 1 groups: each as large as what is missing.
    assert (collected.submissions, len(collected.generated), collected.dropped) == (3, 21, Counter(unlucky=3))
    assert [s.index for s in collected.generated] == list(range(21))


def test_the_next_rollout_goes_on_behind_the_last(collect: Collect) -> None:
    assert numbers(collect(3, keep_if(lambda g: g != 1))) == [0, 2, 3]
    assert numbers(collect(3)) == [4, 5, 6]


def test_the_first_filter_that_drops_is_counted(collect: Collect) -> None:
    class Nameless:
        def __call__(self, group: Sequence[Sample]) -> Decision:
            return Decision(group[0].group_index != 3)

    collected = collect(3, keep_if(lambda g: g > 1, "early"), keep_if(lambda g: g > 0, "first"), Nameless())
    assert numbers(collected) == [2, 4, 5]
    assert collected.dropped == Counter(early=2, Nameless=1)


def test_a_filter_sees_whole_graded_groups(collect: Collect) -> None:
    seen = []

    def look(group: Sequence[Sample]) -> Decision:
        seen.append([(s.reward, bool(s.response)) for s in group])
        return Decision(True)

    collect(2, look)
    assert seen == [[(0.0, True), (1.0, True), (2.0, True)], [(3.0, True), (4.0, True), (5.0, True)]]


def test_endless_dropping_ends_the_run(collect: Collect, source: PromptSource) -> None:
    with pytest.raises(RunError, match="M401") as caught:
        collect(1, keep_if(lambda g: False))
    assert f"unlucky {FRUITLESS_ROLLOUTS}" in caught.value.why
    assert source.state()["groups"] == FRUITLESS_ROLLOUTS


def test_a_group_now_and_then_is_no_endless_dropping(collect: Collect) -> None:
    collected = collect(2, keep_if(lambda g: g % 15 == 14))
    assert numbers(collected) == [14, 29]
    assert collected.submissions > FRUITLESS_ROLLOUTS


def test_rewards_that_fail_are_told_before_filters_drop_forever(collect: Collect) -> None:
    with pytest.raises(RunError, match="M402"):
        collect(2, keep_if(lambda g: False), verdict=lambda s: Invalid("no label"), limit=0.5)


def test_a_broken_reward_ends_collecting(collect: Collect) -> None:
    with pytest.raises(RunError, match="M403") as caught:
        collect(4, verdict=lambda s: Scored({"acc": 1.0}))
    assert not isinstance(caught.value.__context__, RunError)


def test_an_engine_that_fails_ends_collecting_with_its_error(source: PromptSource, judge) -> None:
    class Broken:
        async def generate(self, requests):
            raise RunError("M443", "engine http://e failed", owner="miles-core")
            yield

    collector = Collector(Broken(), source, Grader(judge(lambda s: Scored(1.0)), "judge", None), [], 2)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="M443"):
        asyncio.run(collector.collect(2, PLAN, lambda done, total: None))


def test_groups_are_graded_beside_each_other(source: PromptSource, make_client) -> None:
    class Meeting:
        """Grades no group before all four are there."""

        def __init__(self) -> None:
            self.barrier = asyncio.Barrier(4)

        async def score(self, samples: Sequence[Sample]) -> list[Scored]:
            await asyncio.wait_for(self.barrier.wait(), 10)
            return [Scored(1.0) for _ in samples]

    async def run() -> Collected:
        client = make_client(lambda text, seed: text)
        collector = Collector(client, source, Grader(Meeting(), "judge", None), [], 2)  # type: ignore[arg-type]
        return await collector.collect(4, PLAN, lambda done, total: None)

    assert asyncio.run(run()).tally.graded == 8
