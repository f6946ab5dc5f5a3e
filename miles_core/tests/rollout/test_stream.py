"""Groups that are generated all the time: none lost, none trained on twice, none older than the bound, counted by id."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from miles_core.data.source import Keys, PromptSet, PromptSource
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import RunError
from miles_core.protocols import Decision
from miles_core.rollout.grading import Grader
from miles_core.rollout.sampling import SamplingPlan
from miles_core.rollout.sieve import Sieve
from miles_core.rollout.stream import Lane, Stream
from miles_core.runtime.loops.schedule import Schedule
from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, Sample, SamplingParams, Scored
from miles_core.serving import ServerThread, engine_app
from miles_core.serving.client import EngineClient

N = 2
LIMIT = 40


@dataclass
class Decoding:
    """An engine's service that makes a token per turn of the event loop; new weights cut everything off.

    Samples in ``holds`` make one token in every request, and then wait for an abort, or for their release.
    """

    length: Callable[[int], int]
    holds: frozenset[int] = frozenset()
    version: int = 1
    released: bool = False
    running: dict[str, asyncio.Event] = field(default_factory=dict)

    async def submit(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[Sequence[GenerateResult], None]:
        for result in asyncio.as_completed([self._decode(request) for request in requests]):
            yield [await result]

    async def abort(self, rids: Sequence[str] | None) -> None:
        assert rids is None
        self.version += 1
        for stop in self.running.values():
            stop.set()

    async def _decode(self, request: GenerateRequest) -> GenerateResult:
        version, stop = self.version, asyncio.Event()
        self.running[request.rid] = stop
        index = int(request.rid.split("-")[2])
        have = len(request.input_ids) - (2 + len(str(index // N)))
        left = min(self.length(index) - have, request.params.max_new_tokens)
        made = 0
        while made < left and not stop.is_set():
            await asyncio.sleep(0)
            made += 1
            while index in self.holds and not self.released and not stop.is_set():
                await asyncio.sleep(0.001)
        del self.running[request.rid]
        ids = tuple(3 + (have + i) % 90 for i in range(made))
        reason = FinishReason.STOP if made == left else FinishReason.ABORT
        return GenerateResult(request.rid, ids, tuple(-1.0 for _ in ids), reason, version, "a" * made, len(request.input_ids))


Serve = Callable[..., tuple[list[Decoding], list[str]]]


@pytest.fixture
def serve_engines() -> Iterator[Serve]:
    threads: list[ServerThread] = []

    def start(count: int, length: Callable[[int], int], holds: Sequence[int] = ()) -> tuple[list[Decoding], list[str]]:
        services = [Decoding(length, frozenset(holds)) for _ in range(count)]
        threads.extend(ServerThread(engine_app(service)) for service in services)  # type: ignore[arg-type]
        return services, [thread.start() for thread in threads]

    yield start
    for thread in threads:
        thread.stop()


@pytest.fixture(scope="module")
def tokenizer(request: pytest.FixtureRequest) -> PromptTokenizer:
    return PromptTokenizer(request.getfixturevalue("checkpoint"), apply_chat_template=False)


@pytest.fixture
def make(tokenizer: PromptTokenizer, tmp_path: Path, judge) -> Callable[..., Stream]:
    """A stream over prompts ``q<group>,``; samples are graded by their index."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"input": f"q{i},"}) + "\n" for i in range(300)), encoding="utf-8")

    def new(
        urls: Sequence[str], schedule: Schedule, count: int, staleness: int = 1, *filters, verdict=lambda s: Scored(float(s.index))
    ) -> Stream:
        source = PromptSource(PromptSet(str(path), Keys(), tokenizer), shuffle=False, seed=0)
        lanes = [Lane(EngineClient([url], batch_stream=number % 2 == 0, timeout=30)) for number, url in enumerate(urls)]
        plan = SamplingPlan(SamplingParams(LIMIT), None, 5, "rollout-async")
        grader = Grader(judge(verdict), "judge", None)
        return Stream(
            lanes, source, grader, Sieve(filters, count), N, count, plan, schedule, staleness, 1.0, lambda done, total: None
        )

    return new


def numbers(groups: Sequence[Sequence[Sample]]) -> list[int]:
    return [group[0].group_index for group in groups]


async def publish(stream: Stream, rollout_id: int, version: int) -> None:
    """As the driver does: engines cut off what they decode and serve the new version, then the stream hears of it."""
    for lane in stream.lanes:
        await lane.client.abort_all()
    stream.published(rollout_id, version)


@pytest.mark.parametrize("seed", range(10))
def test_no_group_is_lost_or_comes_twice_or_too_late(seed: int, make, serve_engines: Serve) -> None:
    """Random sizes, lengths, filters, publish intervals and bounds, with publishes in the middle, saves and restores."""
    drawn = random.Random(seed)
    count, staleness, total = drawn.randint(1, 4), drawn.randint(1, 3), 10
    schedule = Schedule(total, drawn.randint(1, 3), None, drawn.random() < 0.7, drawn.randint(1, 4))
    lengths = [drawn.choice([1, 5, 20, 39, 80]) for _ in range(2000)]
    kept = [drawn.random() < 0.8 for _ in range(1000)]
    services, urls = serve_engines(drawn.randint(1, 2), lambda index: lengths[index])
    dropped: list[int] = []

    def keep(group: Sequence[Sample]) -> Decision:
        number = group[0].group_index
        if not kept[number]:
            dropped.append(number)
        return Decision(kept[number], "unlucky")

    async def run() -> tuple[list[int], Stream]:
        stream = make(urls, schedule, count, staleness, keep)
        version, trained = 1, []
        await publish(stream, -1, version + 1)
        version += 1
        for rollout_id in range(total):
            found = await stream.take(rollout_id)
            assert len(found.groups) == count
            assert numbers(found.groups) == sorted(numbers(found.groups))
            assert found.surplus + found.kept <= (staleness + 1) * schedule.publish_every * count
            trained += numbers(found.groups)
            for group in found.groups:
                assert [s.index for s in group] == [N * group[0].group_index + i for i in range(N)]
                for sample in group:
                    assert sample.finished
                    assert sample.reward == sample.index
                    assert sample.response_length == min(lengths[sample.index], LIMIT)
                    assert sample.response_ids == [3 + i % 90 for i in range(sample.response_length)]
                    assert sum(tokens for _, tokens in sample.weight_versions) == sample.response_length
                    assert all(0 <= version - made <= staleness for made, _ in sample.weight_versions)
            # Training takes a while, in which groups go on.
            for _ in range(drawn.randint(0, 30)):
                await asyncio.sleep(0.0005)
            if schedule.saves_after(rollout_id) and rollout_id < total - 1:
                state = json.loads(json.dumps([stream.source.state(), stream.state()]))
                if drawn.random() < 0.6:
                    await stream.close()
                    stream = make(urls, schedule, count, staleness, keep)
                    stream.source.load_state(state[0])
                    stream.load_state(state[1])
                    assert json.loads(json.dumps([stream.source.state(), stream.state()])) == state
            if schedule.publishes_after(rollout_id):
                version += 1
                await publish(stream, rollout_id, version)
        await stream.close()
        return trained, stream

    trained, stream = asyncio.run(run())
    left = [*numbers(stream._again), *stream._ready, *stream._pending]
    assert left == []
    assert len(trained) == len(set(trained)) == total * count
    # Every group that ever went out was trained on or dropped, once.
    assert sorted([*trained, *dropped]) == list(range(stream.source.state()["groups"]))
    assert max(service.version for service in services) > 2


def test_a_long_response_is_waited_for_only_when_it_would_get_too_old(make, serve_engines: Serve) -> None:
    (service,), urls = serve_engines(1, lambda index: 30 if index == 1 else 2, holds=[1])

    async def run() -> list[list[int]]:
        stream = make(urls, Schedule(6), 2, 2)
        await publish(stream, -1, 2)
        taken = []
        for rollout_id in range(2):
            taken.append(numbers((await stream.take(rollout_id)).groups))
            await publish(stream, rollout_id, 3 + rollout_id)
        # Its oldest token is of version 2, and version 4 is served: the next rollout is its last.
        last = asyncio.create_task(stream.take(2))
        while len(stream._ready) < 5:
            await asyncio.sleep(0.001)
        assert not last.done()
        service.released = True
        found = await last
        await stream.close()
        made = found.groups[0][1]
        assert (made.weight_versions[0][0], made.weight_versions[-1][0]) == (2, 4)
        assert made.response_length == 30
        return [*taken, numbers(found.groups)]

    taken = asyncio.run(run())
    assert taken[0] == [1, 2]
    assert all(0 not in groups for groups in taken[:2])
    assert taken[2][0] == 0


def test_what_is_too_old_after_a_change_of_the_bound_starts_anew(make, serve_engines: Serve) -> None:
    _, urls = serve_engines(1, lambda index: 3)

    async def run() -> None:
        stream = make(urls, Schedule(8), 1, 3)
        await publish(stream, -1, 2)
        first = await stream.take(0)
        while len(stream._ready) < 3:
            await asyncio.sleep(0.001)
        state = json.loads(json.dumps([stream.source.state(), stream.state()]))
        await stream.close()
        stream = make(urls, Schedule(8), 1, 1)
        stream.source.load_state(state[0])
        stream.load_state(state[1])
        # As if two more versions had been published since: all that was ready is too old for a bound of 1.
        for lane in stream.lanes:
            await lane.client.abort_all()
            await lane.client.abort_all()
        await publish(stream, 0, 5)
        found = [await stream.take(1)]
        for rollout_id in range(2, 5):
            await publish(stream, rollout_id - 1, rollout_id + 4)
            found.append(await stream.take(rollout_id))
        await stream.close()
        trained = numbers([*first.groups, *(group for each in found for group in each.groups)])
        assert found[0].returned == 3
        assert sorted(trained) == list(range(5))
        ages = [rollout_id + 5 - sample.weight_versions[0][0] for rollout_id, each in enumerate(found) for sample in each.groups[0]]
        assert all(0 <= age <= 1 for age in ages)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("verdict", "filters", "code"),
    [
        (lambda sample: Scored({"acc": 1.0}), (), "M403"),
        (lambda sample: Scored(1.0), (lambda group: Decision(False, "never"),), "M401"),
    ],
)
def test_what_fails_in_the_background_ends_the_run(verdict, filters, code: str, make, serve_engines: Serve) -> None:
    _, urls = serve_engines(1, lambda index: 3)

    async def run() -> None:
        stream = make(urls, Schedule(8), 1, 1, *filters, verdict=verdict)
        try:
            await publish(stream, -1, 2)
            # It shows at the next rollout, also when nothing happens any more.
            while stream._tasks:
                await asyncio.sleep(0.001)
            await stream.take(0)
        finally:
            await stream.close()

    with pytest.raises(RunError) as caught:
        asyncio.run(run())
    assert caught.value.code == code
