"""The client."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from miles_core.errors import RunError
from miles_core.samples import FinishReason, GenerateRequest, SamplingParams
from miles_core.serving import EngineClient, ServerThread, assign, wire


def requests(prompts):
    return [GenerateRequest(f"r{i}", list(p), SamplingParams(max_new_tokens=3)) for i, p in enumerate(prompts)]


def generate(urls, given, batch_stream=True, timeout=10.0):
    """All results by rid."""

    async def main():
        client = EngineClient(urls, batch_stream=batch_stream, timeout=timeout, max_connections=4)
        try:
            return {r.rid: r async for r in client.generate(given)}
        finally:
            await client.close()

    return asyncio.run(asyncio.wait_for(main(), 60))


@given(st.lists(st.lists(st.integers(5, 8), min_size=1, max_size=2), max_size=40), st.integers(1, 4))
def test_assignment_keeps_siblings_together_and_is_even(prompts, engines):
    given = requests(prompts)
    parts = assign(given, engines)
    assert sorted(r.rid for part in parts for r in part) == sorted(r.rid for r in given)
    homes = {}
    for i, part in enumerate(parts):
        for request in part:
            assert homes.setdefault(tuple(request.input_ids), i) == i
    sizes = [prompts.count(p) for p in prompts]
    assert max(map(len, parts)) - min(map(len, parts)) <= max(sizes, default=0)
    assert assign(given, engines) == parts


@pytest.mark.parametrize("batch_stream", [True, False])
def test_results_from_two_engines(echo, batch_stream):
    (one, first), (two, second) = echo(), echo()
    given = requests([[5], [5], [6], [7, 8], [7, 8]])
    results = generate([first, second + "/"], given, batch_stream)
    assert {rid: r.output_ids for rid, r in results.items()} == {r.rid: tuple(reversed(r.input_ids)) for r in given}
    assert {r.weight_version for r in results.values()} == {7}
    batches = [[["r0", "r1"]], [["r2", "r3", "r4"]]]
    assert [one.batches, two.batches] == (batches if batch_stream else [[[r] for r in b[0]] for b in batches])


def test_nothing_to_generate(echo):
    assert generate([echo()[1]], []) == {}


@pytest.mark.parametrize("batch_stream", [True, False])
@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ([2], r"M443 miles-core: engine http://127.0.0.1:\d+ refused the call: HTTP 400: r\d: no twos please. Do: see"),
        ([3], r"M443 .* failed: HTTP (200|500): M456 echo: decoding failed"),
        ([4], r"M442 .*engine http://127.0.0.1:\d+ was silent for 0.3 s. Do: .*--rollout-request-timeout"),
    ],
)
def test_an_engines_trouble_ends_the_call_with_its_url_and_cause(echo, batch_stream, prompt, error):
    (_, first), (_, second) = echo(), echo()
    with pytest.raises(RunError, match=error):
        generate([first, second], requests([[5], prompt, [6]]), batch_stream, timeout=0.3)


@pytest.mark.parametrize("batch_stream", [True, False])
def test_no_connection(batch_stream):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RunError, match=rf"M441 .*no connection to engine http://127.0.0.1:{port}"):
        generate([f"http://127.0.0.1:{port}"], requests([[5]]), batch_stream)


@pytest.fixture
def canned():
    """Servers that answer every call with given bytes."""
    servers = []

    def start(body: bytes, status: int = 200) -> str:
        async def answer(request: web.Request) -> web.Response:
            await request.read()
            return web.Response(body=body, status=status)

        app = web.Application()
        app.router.add_post("/generate", answer)
        servers.append(ServerThread(app))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


def event(document) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(index, ids, reason):
    meta = {"finish_reason": reason, "output_token_logprobs": [[-0.25 * i, i, None] for i in ids], "weight_version": "2"}
    return event({"index": index, "text": "x" * len(ids), "output_ids": ids, "meta_info": meta})


def test_cumulative_chunks_of_sglang(canned):
    """SGLang sends what was made so far again and again; the chunk with a finish reason is the response."""
    body = chunk(0, [4], None) + chunk(1, [5], None) + chunk(0, [4, 6], None) + chunk(1, [5, 7], {"type": "stop", "matched": 7})
    body += chunk(0, [4, 6, 8], {"type": "length", "length": 3}) + wire.DONE
    results = generate([canned(body)], requests([[1], [2]]))
    assert (results["r0"].output_ids, results["r0"].finish_reason) == ((4, 6, 8), FinishReason.LENGTH)
    assert (results["r1"].log_probs, results["r1"].weight_version) == ((-1.25, -1.75), 2)


def test_a_request_that_sglang_aborted_before_its_first_token(canned):
    """It answers 499 then, and an aborted response otherwise."""
    url = canned(b'{"error": {"message": "Request r0 was aborted"}}', status=499)
    (result,) = generate([url], requests([[1, 2]]), batch_stream=False).values()
    assert (result.rid, result.output_ids, result.log_probs, result.finish_reason) == ("r0", (), (), FinishReason.ABORT)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"data: {\n\n", "not JSON"),
        (b"data: [1]\n\n", "not an object"),
        (event({"index": 0, "text": "t"}), "cannot be read: the answer has no meta_info"),
        (wire.DONE, "ended its answer with 0 of 1 responses"),
        (chunk(5, [1], {"type": "stop"}) + wire.DONE, "ended its answer with 0 of 1 responses"),
    ],
)
def test_answers_that_cannot_be_read(canned, body, message):
    with pytest.raises(RunError, match=rf"M444 .*{message}"):
        generate([canned(body)], requests([[1]]))


def test_abort_all_and_health(echo):
    service, url = echo()

    async def main():
        client = EngineClient([url], batch_stream=True, timeout=10.0)
        await client.health()
        stream = client.generate(requests([[1], [5]]))
        first = await anext(stream)
        assert first.output_ids == (5,)
        await client.abort_all()
        assert (await anext(stream)).finish_reason is FinishReason.ABORT
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        service.calls.append(("sick", None))
        with pytest.raises(RunError, match=r"M443 .*HTTP 503: M456 echo: the engine is stuck"):
            await client.health()
        await client.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_closing_the_results_drops_the_call(echo):
    service, url = echo()

    async def main():
        client = EngineClient([url], batch_stream=True, timeout=10.0)
        stream = client.generate(requests([[4], [5]]))
        await anext(stream)
        await stream.aclose()
        while not service.dropped.is_set():
            await asyncio.sleep(0.001)
        await client.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_512_short_responses_cost_little(echo):
    _, url = echo()
    given = requests([[5 + i // 8, 6, 7, 8, 9, 10, 11] for i in range(512)])
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        assert len(generate([url], given)) == 512
        seconds.append(time.perf_counter() - started)
    # The aim is tens of milliseconds; the bound leaves room for a busy machine.
    assert min(seconds) < 0.3
