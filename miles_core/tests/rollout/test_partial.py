"""Over-sampling and partial rollouts against an engine over HTTP that decodes token by token and can be cut off at any moment."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from miles_core.data.source import Keys, PromptSet, PromptSource
from miles_core.data.tokens import PromptTokenizer
from miles_core.errors import RunError
from miles_core.protocols import Decision
from miles_core.rollout.buffer import GroupBuffer
from miles_core.rollout.collector import Collected, Collector, Refill
from miles_core.rollout.grading import Grader
from miles_core.rollout.sampling import SamplingPlan
from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, Sample, SamplingParams, Scored, Status
from miles_core.serving import ServerThread, engine_app
from miles_core.serving.client import EngineClient

LIMIT = 60
N = 3


def token(position: int) -> int:
    """The token at a position of prompt and response: a response says where it was made."""
    return 3 + position % 90


@dataclass
class Decoding:
    """An engine's service: a token per turn of the event loop, as many as ``length`` says of a sample.

    ``cuts`` are turns at which new weights come and cut off everything. A sample of ``holds`` waits at its fourth token, under the
    first version, until it is aborted; the groups behind its own do not begin before.
    """

    length: Callable[[int], int]
    cuts: set[int] = field(default_factory=set)
    holds: set[int] = field(default_factory=set)
    version: int = 1
    turns: int = 0
    held: set[int] = field(default_factory=set)
    all_held: asyncio.Event = field(default_factory=asyncio.Event)
    running: dict[str, asyncio.Event] = field(default_factory=dict)
    requests: list[GenerateRequest] = field(default_factory=list)
    finished: Counter[int] = field(default_factory=Counter)

    async def submit(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[Sequence[GenerateResult], None]:
        self.requests += requests
        ended: asyncio.Queue[GenerateResult] = asyncio.Queue()
        tasks = [asyncio.create_task(self._decode(request, ended)) for request in requests]
        try:
            for _ in requests:
                yield [await ended.get()]
        finally:
            for task in tasks:
                task.cancel()

    async def abort(self, rids: Sequence[str] | None) -> None:
        for rid in list(self.running) if rids is None else rids:
            self.running[rid].set()

    async def _decode(self, request: GenerateRequest, ended: asyncio.Queue[GenerateResult]) -> None:
        version, stop = self.version, asyncio.Event()
        self.running[request.rid] = stop
        index = index_of(request.rid)
        start = len(request.input_ids)
        prompt = 2 + len(str(index // N))
        left = self.length(index) - (start - prompt)
        ids: list[int] = []
        if self.holds and self.version == 1 and index // N not in {held // N for held in self.holds}:
            await self.all_held.wait()
        while not stop.is_set() and len(ids) < min(left, request.params.max_new_tokens):
            await asyncio.sleep(0)
            if index in self.holds and self.version == 1 and len(ids) == 4:
                self.held.add(index)
                if self.held == self.holds:
                    self.all_held.set()
                await stop.wait()
                break
            self.turns += 1
            if self.turns in self.cuts:
                self.version += 1
                await self.abort(None)
                break
            ids.append(token(start + len(ids)))
        reason = FinishReason.ABORT
        if len(ids) >= left:
            reason = FinishReason.STOP
        elif len(ids) == request.params.max_new_tokens:
            reason = FinishReason.LENGTH
        del self.running[request.rid]
        self.finished[index] += reason is not FinishReason.ABORT
        text = "".join(chr(97 + i % 26) for i in ids)
        ended.put_nowait(GenerateResult(request.rid, tuple(ids), tuple(-i / 8 for i in ids), reason, version, text, start))


def index_of(rid: str) -> int:
    """The sample of a request: ``rollout-<id>-<index>``, and more when it goes on."""
    return int(rid.split("-")[2])


@pytest.fixture
def serve_decoding() -> Iterator[Callable[..., tuple[Decoding, str]]]:
    threads: list[ServerThread] = []

    def start(length: Callable[[int], int], cuts: Sequence[int] = (), holds: Sequence[int] = ()) -> tuple[Decoding, str]:
        service = Decoding(length, set(cuts), set(holds))
        threads.append(ServerThread(engine_app(service)))  # type: ignore[arg-type]
        return service, threads[-1].start()

    yield start
    for thread in threads:
        thread.stop()


@pytest.fixture(scope="module")
def tokenizer(request: pytest.FixtureRequest) -> PromptTokenizer:
    return PromptTokenizer(request.getfixturevalue("checkpoint"), apply_chat_template=False)


@pytest.fixture
def make(tokenizer: PromptTokenizer, tmp_path: Path, judge) -> Callable[..., Collector]:
    """A collector over prompts ``q<group>,`` whose samples are graded by their index."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"input": f"q{i},"}) + "\n" for i in range(400)), encoding="utf-8")

    def new(url: str, refill: Refill, *filters, batch_stream: bool = True) -> Collector:
        source = PromptSource(PromptSet(str(path), Keys(), tokenizer), shuffle=False, seed=0)
        client = EngineClient([url], batch_stream=batch_stream, timeout=30)
        grader = Grader(judge(lambda s: Scored(float(s.index))), "judge", None)
        return Collector(client, source, grader, filters, N, 1.0, GroupBuffer(), refill)

    return new


def plan(rollout_id: int, limit: int = LIMIT) -> SamplingPlan:
    return SamplingPlan(SamplingParams(limit), None, 5, f"rollout-{rollout_id}")


def collect(
    collector: Collector, count: int, rollouts: Sequence[int], before: Callable[[int], None] = lambda i: None
) -> list[Collected]:
    """Rollouts one after the other, in one event loop."""

    async def whole() -> list[Collected]:
        found = []
        try:
            for rollout_id in rollouts:
                before(rollout_id)
                found.append(await collector.collect(count, plan(rollout_id), lambda done, total: None, rollout_id))
        finally:
            await collector.client.close()
        return found

    return asyncio.run(whole())


def numbers(groups: Sequence[Sequence[Sample]]) -> list[int]:
    return [group[0].group_index for group in groups]


def check_sample(sample: Sample, masks_earlier: bool) -> None:
    """Ids go on where they stopped, every token has a version and a log-prob, and masks have no 1 before a 0."""
    start = len(sample.prompt_ids)
    assert sample.response_ids == [token(start + i) for i in range(sample.response_length)]
    assert sample.rollout_log_probs == [-i / 8 for i in sample.response_ids]
    assert sum(tokens for _, tokens in sample.weight_versions) == sample.response_length
    made_by = [version for version, _ in sample.weight_versions]
    assert made_by == sorted(set(made_by))
    assert sample.response_length <= LIMIT
    if sample.loss_mask is None:
        return
    assert masks_earlier
    assert sample.loss_mask == sorted(sample.loss_mask)
    assert len(sample.loss_mask) == sample.response_length


@pytest.mark.parametrize("seed", range(12))
def test_no_group_is_lost_or_comes_twice(seed: int, make, serve_decoding) -> None:
    """Random sizes, filters, weight updates in the middle, and saves and restores between rollouts, counted by id."""
    drawn = random.Random(seed)
    count = drawn.randint(1, 4)
    refill = Refill(
        unit=drawn.choice([None, count, count + drawn.randint(1, 5)]),
        partial=seed % 3 != 0,
        mask_earlier=drawn.random() < 0.5,
    )
    keep = drawn.choice([1.0, 0.6])
    kept = {group: drawn.random() < keep for group in range(400)}
    lengths = {index: drawn.choice([1, 5, 20, 80]) for index in range(400 * N)}
    cuts = set(drawn.sample(range(1, 3000), 8))
    service, url = serve_decoding(lambda index: lengths[index], cuts)

    def drop(group: Sequence[Sample]) -> Decision:
        return Decision(kept[group[0].group_index], "unlucky")

    collector = make(url, refill, drop, batch_stream=seed % 2 == 0)
    accepted: list[int] = []
    graded: list[int] = []
    dropped = 0
    for rollout_id in range(6):
        (found,) = collect(collector, count, [rollout_id])
        assert len(found.groups) == count
        assert numbers(found.groups) == sorted(numbers(found.groups))
        accepted += numbers(found.groups)
        graded += numbers(found.finished)
        dropped += found.dropped.total()
        for group in found.groups:
            assert [s.index for s in group] == [N * group[0].group_index + i for i in range(N)]
            for sample in group:
                assert sample.finished
                assert sample.reward == sample.index
                check_sample(sample, refill.mask_earlier)
        waiting = numbers(collector.buffer.groups)
        state = json.loads(json.dumps([collector.source.state(), collector.buffer.state()]))
        returned = [place[1] for place in state[0]["returned"]]
        # Every group that ever went out is in exactly one place.
        assert len(set(accepted)) == len(accepted)
        assert all(kept[number] for number in accepted)
        lost = [number for number in graded if not kept[number]]
        assert len(lost) == dropped
        assert sorted([*accepted, *lost, *waiting, *returned]) == list(range(state[0]["groups"]))
        if drawn.random() < 0.5:
            before = collector.buffer.groups
            seen = collector.grader._reward.seen
            collector = make(url, refill, drop, batch_stream=seed % 2 == 0)
            collector.grader._reward.seen += seen
            collector.source.load_state(state[0])
            collector.buffer.load_state(state[1], N)
            assert collector.buffer.groups == before
            assert json.loads(json.dumps([collector.source.state(), collector.buffer.state()])) == state
        service.version += 1
    # Nothing is graded twice, and no sample that had ended is generated again, unless its prompt was given back.
    seen = collector.grader._reward.seen
    assert len(seen) == len(set(seen))
    if refill.partial:
        assert set(service.finished.values()) <= {0, 1}


def test_unfinished_groups_are_resumed_first_with_what_they_have(make, serve_decoding) -> None:
    # Group 0 has one short and two endless responses; groups 1 and 2 end at once.
    service, url = serve_decoding(lambda index: {0: 2, 1: 50, 2: 10_000}.get(index, 1), holds=[1, 2])
    collector = make(url, Refill(3, partial=True))
    (first,) = collect(collector, 2, [0])
    service.version = 2
    # As many as go out, so that no new group can overtake.
    (second,) = collect(collector, 3, [1])
    assert numbers(first.groups) == [1, 2]
    assert (first.kept, first.returned, first.surplus, first.resumed_groups) == (1, 0, 0, 0)
    assert numbers(second.groups)[0] == 0
    assert (second.resumed_groups, second.resumed_samples) == (1, 2)
    ended, long, endless = second.groups[0]
    assert (ended.status, ended.weight_versions) == (Status.COMPLETED, [(1, 2)])
    assert (long.status, endless.status) == (Status.COMPLETED, Status.TRUNCATED)
    assert (long.response_length, endless.response_length) == (50, LIMIT)
    for sample in (long, endless):
        assert [version for version, _ in sample.weight_versions] == [1, 2]
        check_sample(sample, masks_earlier=False)
        begun = sample.weight_versions[0][1]
        asked = [r for r in service.requests if index_of(r.rid) == sample.index]
        assert [r.params.max_new_tokens for r in asked] == [LIMIT, LIMIT - begun]
        assert list(asked[1].input_ids) == sample.tokens[: len(sample.prompt_ids) + begun]
        assert asked[0].params.sampling_seed != asked[1].params.sampling_seed
    assert [index_of(r.rid) for r in service.requests].count(0) == 1
    assert sorted(collector.grader._reward.seen) == sorted({s.index for found in (first, second) for s in found.generated})


def test_earlier_tokens_are_masked_on_request(make, serve_decoding) -> None:
    service, url = serve_decoding(lambda index: {0: 2, 1: 50, 2: 10_000}.get(index, 1), holds=[1, 2])
    collector = make(url, Refill(3, partial=True, mask_earlier=True))
    (first,) = collect(collector, 2, [0])
    service.version = 2
    # As many as go out, so that no new group can overtake.
    (second,) = collect(collector, 3, [1])
    assert all(s.loss_mask is None for group in first.groups for s in group)
    ended, *others = second.groups[0]
    assert ended.loss_mask == [0, 0]
    for sample in others:
        (_, old), (_, new) = sample.weight_versions
        assert sample.loss_mask == [0] * old + [1] * new


def test_surplus_groups_are_kept_as_they_are(make, serve_decoding) -> None:
    service, url = serve_decoding(lambda index: 1)
    collector = make(url, Refill(6))
    found = collect(collector, 2, [0, 1, 2], lambda rollout_id: setattr(service, "version", rollout_id + 1))
    assert found[0].resumed_groups == 0
    taken = [number for each in found for number in numbers(each.groups)]
    assert sorted(taken) == sorted(set(taken))
    surplus = [group for each in found[1:] for group in each.groups if group[0].weight_versions == [(1, 1)]]
    assert len(surplus) == min(found[0].surplus, 4)
    assert len(collector.grader._reward.seen) == len(set(collector.grader._reward.seen))


def test_without_partial_rollouts_unused_prompts_come_next(make, serve_decoding) -> None:
    service, url = serve_decoding(lambda index: 9 if index < N else 1, holds=[0, 1, 2])
    collector = make(url, Refill(3))
    (first,) = collect(collector, 2, [0])
    service.version = 2
    # As many as go out, so that no new group can overtake.
    (second,) = collect(collector, 3, [1])
    assert numbers(first.groups) == [1, 2]
    assert (first.returned, first.kept) == (1, 0)
    assert 0 in numbers(second.groups)
    group = next(group for group in second.groups if group[0].group_index == 0)
    assert all(s.weight_versions == [(2, 9)] for s in group)


def test_what_new_weights_cut_off_goes_on_in_the_same_rollout(make, serve_decoding) -> None:
    service, url = serve_decoding(lambda index: 40, [200])
    collector = make(url, Refill())
    (found,) = collect(collector, 3, [0])
    samples = [sample for group in found.groups for sample in group]
    assert all(sample.response_length == 40 for sample in samples)
    for sample in samples:
        check_sample(sample, masks_earlier=False)
    assert {version for s in samples for version, _ in s.weight_versions} == {1, 2}
    # No token is made twice: a turn each, and the one at which the weights came.
    assert service.turns == 40 * 9 + 1


def test_engines_that_only_abort_end_the_run(make, serve_decoding) -> None:
    _, url = serve_decoding(lambda index: 40, range(100_000))
    with pytest.raises(RunError, match="M405"):
        collect(make(url, Refill()), 2, [0])


def test_text_made_in_parts_is_decoded_as_a_whole(make, serve_decoding) -> None:
    _, url = serve_decoding(lambda index: 40, [200])
    collector = make(url, Refill())

    async def whole() -> Collected:
        how = SamplingPlan(SamplingParams(LIMIT), None, 5, "rollout-0", decode=lambda ids: f"{len(ids)} tokens")
        try:
            return await collector.collect(2, how, lambda done, total: None)
        finally:
            await collector.client.close()

    for group in asyncio.run(whole()).groups:
        for sample in group:
            assert (sample.response == "40 tokens") is (len(sample.weight_versions) > 1)


def test_a_state_of_the_middle_of_a_rollout_begins_it_anew(make, serve_decoding) -> None:
    _, url = serve_decoding(lambda index: 5 + index % 7)
    states: list[str] = []

    def third(group: Sequence[Sample]) -> Decision:
        if group[0].group_index % 10 == 6:
            states.append(json.dumps([collector.source.state(), collector.buffer.state()]))
        return Decision(group[0].group_index % 3 != 0, "unlucky")

    collector = make(url, Refill(), third)
    whole = collect(collector, 4, [0, 1])
    assert states
    source, buffer = json.loads(states[0])
    assert source["returned"]
    again = make(url, Refill(), third)
    again.source.load_state(source)
    again.buffer.load_state(buffer, N)
    collector = again
    (resumed,) = collect(again, 4, [1])
    assert resumed.groups == whole[1].groups
