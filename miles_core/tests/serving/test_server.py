"""The HTTP server."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from miles_core.errors import MilesError
from miles_core.samples import GenerateRequest, SamplingParams
from miles_core.serving import ServerThread, engine_app, wire


def ask(url, path, body=None, raw=None, method=None):
    """Status, content type and body of one call."""

    async def main():
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        verb = method or ("GET" if data is None else "POST")
        async with aiohttp.ClientSession() as session, session.request(verb, url + path, data=data) as response:
            return response.status, response.content_type, await response.read()

    return asyncio.run(asyncio.wait_for(main(), 30))


def requests(*prompts):
    return [GenerateRequest(f"r{i}", list(p), SamplingParams(max_new_tokens=3)) for i, p in enumerate(prompts)]


def test_answers_come_in_the_order_of_the_prompts(echo):
    _, url = echo()
    status, kind, body = ask(url, "/generate", raw=wire.encode_call(requests([5, 6], [7]), batched=True, stream=False))
    assert (status, kind) == (200, "application/json")
    assert [a["output_ids"] for a in json.loads(body)] == [[6, 5], [7]]
    status, _, body = ask(url, "/generate", raw=wire.encode_call(requests([5, 6]), batched=False, stream=False))
    assert json.loads(body)["meta_info"]["weight_version"] == "7"


def test_a_stream_holds_one_event_per_response(echo):
    _, url = echo()
    status, kind, body = ask(url, "/generate", raw=wire.encode_call(requests([5, 6], [7]), batched=True, stream=True))
    assert (status, kind) == (200, "text/event-stream")
    *events, end, rest = body.split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"")
    assert [json.loads(e[6:])["index"] for e in events] == [1, 0]
    assert json.loads(events[1][6:])["output_ids"] == [6, 5]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[1]", "the body must be a JSON object"),
        (b'{"input_ids": []}', "input_ids must be a list"),
        (b'{"input_ids": [2], "rid": "x"}', "x: no twos please"),
    ],
)
def test_a_bad_request_is_one_line_of_json(echo, raw, message):
    _, url = echo()
    status, kind, body = ask(url, "/generate", raw=raw)
    assert (status, kind) == (400, "application/json")
    assert message in json.loads(body)["error"]["message"]
    assert "\n" not in json.loads(body)["error"]["message"]


def test_other_errors(echo):
    _, url = echo(max_body=1000)
    assert ask(url, "/generate", raw=b'{"input_ids": [' + b"1," * 1000 + b"1]}")[0] == 413
    status, _, body = ask(url, "/generate", {"input_ids": [3]})
    assert status == 500
    assert "M456 echo: decoding failed" in json.loads(body)["error"]["message"]
    assert ask(url, "/nothing")[0] == 404
    assert ask(url, "/generate")[0] == 405
    status, _, body = ask(url, "/continue_generation", {})
    assert status == 400
    assert "M454" in json.loads(body)["error"]["message"]


def test_a_failure_in_a_stream_is_an_event(echo):
    _, url = echo()
    status, _, body = ask(url, "/generate", raw=wire.encode_call(requests([3], [5]), batched=True, stream=True))
    assert status == 200
    first, second, *_ = body.split(b"\n\n")
    assert json.loads(first[6:])["index"] == 1
    assert "M456" in json.loads(second[6:])["error"]["message"]


def test_control_routes_reach_the_service(echo):
    service, url = echo()
    assert ask(url, "/health")[0] == ask(url, "/health_generate")[0] == 200
    assert ask(url, "/server_info")[2] == ask(url, "/get_server_info")[2] == b'{"engine":"echo"}'
    for path in ("/model_info", "/get_model_info", "/get_weight_version"):
        assert json.loads(ask(url, path)[2])["weight_version"] == "7"
    assert json.loads(ask(url, "/pause_generation", {})[2])["status"] == "ok"
    ask(url, "/pause_generation", {"mode": "in_place"})
    assert ask(url, "/pause_generation", {"mode": ["abort"]})[0] == 400
    assert ask(url, "/flush_cache")[0] == ask(url, "/flush_cache", method="POST")[0] == 200
    assert ask(url, "/release_memory_occupation", {"tags": ["weights"]})[2] == b"null"
    assert ask(url, "/release_memory_occupation", {"tags": "weights"})[0] == 400
    assert ask(url, "/resume_memory_occupation", {})[2] == b"null"
    ask(url, "/abort_request", {"abort_all": True})
    ask(url, "/abort_request", {"rid": "a"})
    assert ask(url, "/abort_request", {"rid": 5})[0] == 400
    assert service.calls == [
        ("pause", "abort"),
        ("pause", "in_place"),
        ("flush", None),
        ("flush", None),
        ("release", ["weights"]),
        ("resume_memory", None),
        ("abort", None),
        ("abort", ["a"]),
    ]
    service.calls.append(("sick", None))
    status, _, body = ask(url, "/health")
    assert status == 503
    assert "stuck" in json.loads(body)["error"]["message"]


def test_middlewares_run_in_order_and_see_errors(echo):
    seen = []

    def middleware(name):
        async def call(request, call_next):
            seen.append(f"{name} in")
            response = await call_next(request)
            seen.append(f"{name} {response.status}")
            return response

        return call

    _, url = echo(middlewares=[middleware("inner"), middleware("outer")])
    ask(url, "/health")
    assert seen == ["outer in", "inner in", "inner 200", "outer 200"]
    seen.clear()
    assert ask(url, "/generate", {"input_ids": [2]})[0] == 400
    assert seen == ["outer in", "inner in", "inner 400", "outer 400"]


def test_a_taken_port_and_a_foreign_address_are_named(echo):
    service, url = echo()
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(MilesError, match=rf"M440 .*127.0.0.1 port {port}: the port is in use"):
        ServerThread(engine_app(service), port=port).start()
    with pytest.raises(MilesError, match=r"M440 .*203.0.113.9"):
        ServerThread(engine_app(service), host="203.0.113.9").start()


def test_a_server_stops_with_a_call_in_flight(echo):
    service, _ = echo()
    server = ServerThread(engine_app(service))
    address = server.start()

    async def main():
        async with aiohttp.ClientSession() as session:
            call = asyncio.create_task(session.post(f"{address}/generate", json={"input_ids": [4]}))
            while not service.batches:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(server.stop)
            with pytest.raises(aiohttp.ClientError):
                await call

    asyncio.run(asyncio.wait_for(main(), 30))
    assert not server.running
    assert service.dropped.is_set()
