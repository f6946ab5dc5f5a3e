"""What the router does with calls: where they go, what happens when workers fail, and when there are too many."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from miles_core.router import RouterSettings
from miles_core.samples import GenerateRequest, SamplingParams
from miles_core.serving import EngineClient

QUICK = RouterSettings(policy="least-loaded", health_interval=0.05, patience=0.3)
BOTH = pytest.mark.parametrize("short", [True, False], ids=["short way", "application"])


@BOTH
def test_a_call_and_its_answer_are_passed_on(play, short: bool) -> None:
    async def scene(stage) -> None:
        further = {"sampling_params": {"temperature": 0.5}, "rid": "seven", "vendor_field": [1]}
        for _ in range(3):
            status, answer = await stage.generate([7, 8], **further)
            assert (status, answer["output_ids"], answer["meta_info"]["prompt_tokens"]) == (200, [7], 2)
        assert [each for worker in stage.workers for each in worker.seen] == [{"input_ids": [7, 8], **further}] * 3
        assert stage.router.pool.version == 1

    play(scene, short=short)


@BOTH
def test_calls_go_to_the_worker_with_fewest_in_flight(play, short: bool) -> None:
    async def scene(stage) -> None:
        for worker in stage.workers:
            worker.hold.clear()
        calls = [asyncio.create_task(stage.generate([number])) for number in range(12)]
        await stage.until(lambda: sum(worker.now for worker in stage.workers) == 12)
        assert [worker.now for worker in stage.workers] == [4, 4, 4]
        for worker in stage.workers:
            worker.hold.set()
        assert {(await call)[0] for call in calls} == {200}
        assert [worker.load for worker in stage.router.pool.workers.values()] == [0, 0, 0]

    play(scene, count=3, short=short)


@BOTH
def test_a_prefix_goes_where_it_was_seen_until_weights_change(play, short: bool) -> None:
    async def scene(stage) -> None:
        start = list(range(1000, 1300))
        first, second = stage.workers
        await stage.generate(start)
        mine = first if first.seen else second
        # The other one is idler from now on, and the prompt's start is known.
        mine.hold.clear()
        calls = [asyncio.create_task(stage.generate([*start, number])) for number in range(4)]
        await stage.until(lambda: mine.now == 4)
        strange = asyncio.create_task(stage.generate(list(range(9000, 9300))))
        assert (await strange)[0] == 200
        await stage.router.published(2)
        assert (await stage.generate([*start, 5]))[0] == 200, "the other worker has it, as nobody has a cache now"
        mine.hold.set()
        await asyncio.gather(*calls)
        assert len(mine.seen) == 5

    play(scene, settings=replace(QUICK, policy="cache-aware"), short=short)


@BOTH
@pytest.mark.parametrize("mood", ["cuts", "busy"])
def test_a_call_that_a_worker_loses_goes_to_another(play, short: bool, mood: str) -> None:
    async def scene(stage) -> None:
        stage.workers[0].mood = mood
        answers = [await stage.generate([number]) for number in range(5)]
        assert [(status, answer["output_ids"]) for status, answer in answers] == [(200, [number]) for number in range(5)]
        assert len(stage.workers[1].seen) == 5
        assert stage.router.generator.retries == 1, "a worker that failed is no first choice"

    play(scene, settings=replace(QUICK, health_interval=60.0), short=short)


@BOTH
def test_a_refusal_is_the_answer(play, short: bool) -> None:
    async def scene(stage) -> None:
        stage.workers[0].mood = "refuses"
        status, answer = await stage.generate([1])
        assert (status, answer["error"]["message"]) == (400, "no such thing")
        assert not stage.workers[1].seen
        assert stage.router.pool.live == list(stage.router.pool.workers.values())

    play(scene, short=short)


@BOTH
def test_a_silent_worker_is_given_up(play, short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miles_core.router.generate.BACKOFF", 0.01)

    async def scene(stage) -> None:
        stage.workers[0].hold.clear()
        status, answer = await stage.generate([3])
        assert (status, answer["output_ids"]) == (200, [3])
        await stage.until(lambda: stage.workers[0].gone >= 1)
        stage.workers[1].hold.clear()
        assert (await stage.generate([4]))[0] == 504

    play(scene, settings=replace(QUICK, timeout=0.4, failure_threshold=100), short=short)


def test_every_prompt_of_a_stream_is_answered_once_when_a_worker_goes_away(play) -> None:
    async def scene(stage) -> None:
        stage.workers[0].mood = "cuts late"
        events = await stage.stream([[number] for number in range(20)])
        assert sorted(event["index"] for event in events) == list(range(20))
        assert all(event["output_ids"] == [event["index"]] for event in events)
        assert len(stage.workers[1].seen) == 2

    play(scene)


@BOTH
def test_calls_of_a_worker_that_is_taken_away_go_to_another(play, short: bool) -> None:
    """The worker is silent and its connections stay: nothing else would tell."""

    async def scene(stage) -> None:
        mine, other = stage.workers
        mine.hold.clear()
        call = asyncio.create_task(stage.generate([3]))
        await stage.until(lambda: len(mine.seen) == 1)
        await stage.router.remove_worker(mine.url)
        status, answer = await call
        assert (status, answer["output_ids"]) == (200, [3])
        assert len(other.seen) == 1

    play(scene, settings=replace(QUICK, health_interval=60.0), short=short)


def test_a_stream_of_a_worker_that_is_taken_away_goes_to_another(play) -> None:
    async def scene(stage) -> None:
        mine = stage.workers[0]
        mine.hold.clear()
        stream = asyncio.create_task(stage.stream([[number] for number in range(6)]))
        await stage.until(lambda: len(mine.seen) == 1)
        await stage.router.remove_worker(mine.url)
        events = await stream
        assert sorted(event["index"] for event in events) == list(range(6))

    play(scene, settings=replace(QUICK, health_interval=60.0))


def test_a_prompt_may_lose_as_many_workers_as_the_settings_say(play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miles_core.router.generate.BACKOFF", 0.01)

    async def scene(stage) -> None:
        for worker in stage.workers:
            worker.mood = "cuts"
        status, answer = await stage.generate([1])
        assert status == 502
        assert "6 times" in answer["error"]["message"]

    play(scene, settings=replace(QUICK, attempts=6, failure_threshold=100, health_interval=60.0))


def test_a_caller_that_goes_away_ends_its_call(play) -> None:
    async def scene(stage) -> None:
        for worker in stage.workers:
            worker.hold.clear()
        calls = [asyncio.create_task(stage.generate([1])), asyncio.create_task(stage.generate([[1], [2]], stream=True))]
        await stage.until(lambda: sum(worker.now for worker in stage.workers) == 3)
        for call in calls:
            call.cancel()
        await stage.until(lambda: sum(worker.gone for worker in stage.workers) == 3)
        assert stage.router.gate.inside == 0

    play(scene)


def test_quarantine_and_return(play) -> None:
    async def scene(stage) -> None:
        sick, well = stage.workers
        sick.healthy = False
        pool = stage.router.pool
        await stage.until(lambda: len(pool.live) == 1)
        assert pool.workers[sick.url].reason == "GET /health: HTTP 503"
        assert (await stage.get("/list_workers"))[1] == f'{{"urls":["{well.url}"]}}'
        well.version, sick.healthy = "2", True
        await stage.generate([1])
        await stage.until(lambda: "version 1, and 2 is current" in pool.workers[sick.url].reason)
        assert len(pool.live) == 1, "it has old weights"
        sick.version = "2"
        await stage.until(lambda: len(pool.live) == 2)

    play(scene)


def test_a_worker_that_is_added_again_is_back_at_once(play) -> None:
    async def scene(stage) -> None:
        first, second = stage.workers
        first.healthy = False
        await stage.until(lambda: len(stage.router.pool.live) == 1)
        first.healthy = True
        assert (await stage.post("/add_worker", {"worker_url": first.url}))[0] == 200
        assert len(stage.router.pool.live) == 2
        assert (await stage.post(f"/remove_worker?url={second.url}", None))[1]["worker_urls"] == {first.url: 0}
        for number in range(3):
            await stage.generate([number])
        assert len(first.seen) == 3
        async with stage.caller.delete(f"{stage.url}/workers/0") as response:
            assert response.status == 200
        status, answer = await stage.generate([1])
        assert (status, answer["error"]["message"]) == (503, "none of 0 workers is well")
        assert (await stage.get("/health"))[0] == 503
        assert (await stage.post("/workers", {"url": "ftp://x"}))[0] == 400
        assert (await stage.post("/remove_worker", {"url": first.url}))[0] == 404

    play(scene)


def test_a_call_waits_for_a_worker(play) -> None:
    async def scene(stage) -> None:
        call = asyncio.create_task(stage.generate([1]))
        await stage.until(lambda: stage.router.gate.inside == 1)
        from_somewhere = stage.workers[0].url
        await stage.router.add_worker(from_somewhere)
        assert (await call)[0] == 200

    async def without(stage) -> None:
        await stage.router.remove_worker(stage.workers[0].url)
        await scene(stage)

    play(without, count=1, settings=replace(QUICK, patience=20.0))


@BOTH
def test_too_many_calls_wait_and_the_rest_are_turned_away(play, short: bool) -> None:
    async def scene(stage) -> None:
        worker = stage.workers[0]
        worker.hold.clear()
        calls = [asyncio.create_task(stage.generate([number])) for number in range(5)]
        await stage.until(lambda: stage.router.gate.queued == 3)
        async with stage.caller.post(f"{stage.url}/generate", json={"input_ids": [9]}) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert "the router is busy: 2 calls are in flight and 3 wait" in await response.text()
        calls[4].cancel()
        await stage.until(lambda: stage.router.gate.queued == 2)
        worker.hold.set()
        assert [(await call)[1]["output_ids"] for call in calls[:4]] == [[number] for number in range(4)]
        assert worker.most == 2
        assert (stage.router.gate.inside, stage.router.gate.queued) == (0, 0)

    play(scene, count=1, settings=replace(QUICK, max_connections=2, max_waiting=3), short=short)


@pytest.mark.parametrize("batch_stream", [True, False])
def test_the_rollout_client_comes_back(play, batch_stream: bool) -> None:
    async def scene(stage) -> None:
        worker = stage.workers[0]
        worker.hold.clear()
        held = asyncio.create_task(stage.generate([99]))
        await stage.until(lambda: worker.now == 1)
        client = EngineClient([stage.url], batch_stream=batch_stream, timeout=20.0)
        requests = [GenerateRequest(f"r{number}", [number], SamplingParams(8)) for number in range(3)]

        async def collect() -> list[int]:
            return sorted([result.output_ids[0] async for result in client.generate(requests)])

        work = asyncio.create_task(collect())
        await stage.until(lambda: stage.router.gate.refused >= (1 if batch_stream else 3))
        worker.hold.set()
        assert await work == [0, 1, 2]
        assert (await held)[0] == 200
        await client.close()

    play(scene, count=1, settings=replace(QUICK, max_connections=1, max_waiting=0))


@BOTH
def test_a_key_is_asked_for_and_shown(play, short: bool) -> None:
    async def scene(stage) -> None:
        worker = stage.workers[0]
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            status, answer = await stage.post("/generate", {"input_ids": [1]}, headers=headers)
            assert (status, answer["error"]["message"]) == (401, "this address asks for an API key")
        assert (await stage.get("/list_workers"))[0] == 401
        assert not worker.seen
        assert (await stage.get("/health"))[0] == 200
        client = EngineClient([stage.url], batch_stream=not short, timeout=20.0, api_key="right")
        results = [each async for each in client.generate([GenerateRequest("a", [5], SamplingParams(8))])]
        await client.abort_all()
        await client.close()
        assert results[0].output_ids == (5,)
        assert set(worker.headers) == {"Bearer right"}

    play(scene, count=1, settings=replace(QUICK, api_key="right"), short=short)


def test_an_abort_reaches_every_worker_and_begins_nothing_anew(play) -> None:
    async def scene(stage) -> None:
        first, second = stage.workers
        first.hold.clear()
        calls = [asyncio.create_task(stage.generate(ids)) for ids in ([1], [[1], [2]])]
        await stage.until(lambda: first.now + second.now >= 1 and len(first.seen) == 2)
        assert (await stage.post("/abort_request", {"abort_all": True}))[0] == 200
        assert all("POST /abort_request" in worker.calls for worker in stage.workers)
        await stage.router.remove_worker(second.url)
        first.mood = "busy"
        first.hold.set()
        single, batch = [(await call)[1] for call in calls]
        assert single["meta_info"]["finish_reason"]["type"] == "abort"
        assert single["output_ids"] == []
        assert {each["meta_info"]["finish_reason"]["type"] for each in batch} <= {"abort", "length"}
        assert len(first.seen) == 2

    play(scene, settings=replace(QUICK, health_interval=60.0))


@BOTH
def test_an_abort_ends_the_wait_for_a_worker(play, short: bool) -> None:
    async def scene(stage) -> None:
        for worker in stage.workers:
            await stage.router.remove_worker(worker.url)
        calls = [asyncio.create_task(stage.generate(ids)) for ids in ([1], [[1], [2]])]
        await stage.until(lambda: stage.router.gate.inside == 2)
        assert (await stage.post("/abort_request", {"abort_all": True}))[0] == 200
        (_, one), (_, two) = await asyncio.gather(*calls)
        assert [each["meta_info"]["finish_reason"]["type"] for each in [one, *two]] == ["abort"] * 3

    play(scene, settings=replace(QUICK, patience=60.0), short=short)


@BOTH
def test_calls_that_wait_are_aborted_as_well(play, short: bool) -> None:
    async def scene(stage) -> None:
        worker = stage.workers[0]
        worker.hold.clear()
        calls = [asyncio.create_task(stage.generate([1]))]
        await stage.until(lambda: worker.now == 1)
        calls += [asyncio.create_task(stage.generate(ids)) for ids in ([2], [[3], [4]])]
        streamed = asyncio.create_task(stage.stream([[5], [6]]))
        await stage.until(lambda: stage.router.gate.queued == 3)
        await stage.post("/abort_request", {"abort_all": True})
        worker.hold.set()
        answers = [(await call)[1] for call in calls]
        waited = [answers[1], *answers[2], *await streamed]
        assert [each["meta_info"]["finish_reason"]["type"] for each in waited] == ["abort"] * 5
        assert [event["index"] for event in waited[3:]] == [0, 1]
        assert len(worker.seen) == 1
        assert (await stage.generate([7]))[1]["output_ids"] == [7]

    play(scene, count=1, settings=replace(QUICK, max_connections=1), short=short)


def test_other_calls_are_passed_on_and_reads_are_tried_again(play) -> None:
    async def scene(stage) -> None:
        async with stage.caller.put(f"{stage.url}/some%2Fwhere?x=1%20", data=b"body") as response:
            assert (response.status, await response.text()) == (200, "PUT /some%2Fwhere?x=1%20")
            assert response.headers["X-From"] == stage.workers[0].url
        stage.workers[0].mood = "cuts"
        assert await stage.get("/server_info") == (200, "GET /server_info")
        await stage.router.add_worker(stage.workers[0].url)
        assert (await stage.post("/update_something", {}))[0] == 502, "it might happen twice"

    play(scene, settings=replace(QUICK, health_interval=60.0))


def test_a_body_over_the_limit_is_refused(play) -> None:
    async def scene(stage) -> None:
        assert (await stage.generate([1] * 1000))[0] == 413
        assert (await stage.generate([1] * 10))[0] == 200
        assert (await stage.post("/generate", [1]))[0] == 400
        assert (await stage.generate([[1], "two"]))[0] == 400

    play(scene, settings=replace(QUICK, max_body=1000), short=False)
    play(scene, settings=replace(QUICK, max_body=1000))


def test_metrics(play) -> None:
    async def scene(stage) -> None:
        await stage.generate([1])
        await stage.generate([[1], [2]])
        await stage.generate([])
        status, text = await stage.get("/metrics")
        assert status == 200
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert values['miles_router_answers_total{status="200"}'] == "2"
        assert values['miles_router_answers_total{status="400"}'] == "1"
        assert values["miles_router_in_flight"] == "0"
        served = [values[f'miles_router_worker_served_total{{url="{worker.url}"}}'] for worker in stage.workers]
        assert sum(map(int, served)) == 3
        assert (await stage.get("/workers"))[0] == 200

    play(scene)


def test_a_middleware_is_around_every_call(play) -> None:
    order: list[str] = []

    def named(name: str):
        async def middleware(request, call_next):
            order.append(name)
            return await call_next(request)

        return middleware

    async def scene(stage) -> None:
        assert (await stage.generate([1]))[0] == 200
        assert order == ["outer", "inner"]

    play(scene, middlewares=(named("inner"), named("outer")))
