"""Reward remote_rm against a real server that answers, fails, stalls and talks nonsense."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored, Timeout
from miles_rewards.remote.client import JsonClient
from miles_rewards.remote.options import RemoteOptions, RequestOptions, shown
from miles_rewards.remote.reward import RemoteReward, create

SAMPLE = Sample(prompt="2+2?", response="4", label=4, metadata={"id": 7})
STEP = 0.02


def ask(
    url: str, samples: list[Sample] | None = None, token: str | None = None, boxed: bool = False, **options: Any
) -> list[Score]:
    async def run() -> list[Score]:
        given = RequestOptions(**{"rm_attempts": 3, "rm_timeout": 5.0, **options})
        reward = RemoteReward(JsonClient(url, token, given, base=STEP), boxed)
        try:
            return await reward.score([SAMPLE] if samples is None else samples)
        finally:
            await reward.close()

    return asyncio.run(run())


def test_body_and_scores(serve: Callable[..., Any]) -> None:
    server = serve(lambda number, body: web.json_response([0.25, {"score": 1, "note": "x"}, True, 3][number - 1]))
    assert ask(server.url) == [Scored(0.25)]
    assert ask(server.url, [Sample(prompt=[{"role": "user", "content": "é"}], response="\ud800 4", label=None)]) == [
        Scored({"score": 1, "note": "x"})
    ]
    assert ask(server.url, boxed=True, samples=[Sample(response="so \\boxed{5}")]) == [Scored(1.0)]
    assert [body for body, _ in server.seen] == [
        {"prompt": "2+2?", "response": "4", "label": 4, "metadata": {"id": 7}},
        {"prompt": [{"role": "user", "content": "é"}], "response": "\ud800 4", "label": None},
        {"prompt": "", "response": "5", "label": None},
    ]


def test_order_and_concurrency(serve: Callable[..., Any]) -> None:
    async def slowly(number: int, body: Any) -> web.Response:
        await asyncio.sleep(0.01 * (20 - body["label"]))
        return web.json_response(body["label"])

    server = serve(slowly)
    samples = [Sample(response="", label=label) for label in range(20)]
    assert ask(server.url, samples, rm_concurrency=4) == [Scored(float(label)) for label in range(20)]
    assert server.most == 4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_are_tried_again(serve: Callable[..., Any], status: int) -> None:
    server = serve(lambda number, body: web.json_response(1.0) if number == 3 else web.Response(status=status, text="busy"))
    assert ask(server.url) == [Scored(1.0)]
    assert len(server.seen) == 3


def test_a_server_that_only_fails(serve: Callable[..., Any]) -> None:
    server = serve(lambda number, body: web.Response(status=500, text="out of\nmemory"))
    (score,) = ask(server.url)
    assert isinstance(score, Invalid)
    assert "HTTP 500: out of memory (in the last of 3 attempts)" in score.detail
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [301, 400, 401, 404, 422])
def test_refusals_are_not_tried_again(serve: Callable[..., Any], status: int) -> None:
    server = serve(lambda number, body: web.Response(status=status, text="no", headers={"Location": "/elsewhere"}))
    (score,) = ask(server.url)
    assert isinstance(score, Invalid)
    assert f"HTTP {status}: no" in score.detail
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("text", "requests", "said"),
    [
        ("<html>oops", 3, "no JSON: <html>oops"),
        ("", 3, "no JSON"),
        ('"good"', 1, "neither a number nor a dict"),
        ("null", 1, "neither a number nor a dict"),
        ("{}", 1, "empty dict"),
        ("NaN", 1, "nan"),
        ("1" + "0" * 400, 1, "inf"),
        ("[" * 100_000, 3, "no JSON"),
        ("1" * (1 << 21), 1, "more than"),
    ],
)
def test_nonsense(serve: Callable[..., Any], text: str, requests: int, said: str) -> None:
    server = serve(lambda number, body: web.Response(text=text))
    (score,) = ask(server.url)
    assert isinstance(score, Invalid)
    assert said in score.detail
    assert len(score.detail) < 500
    assert len(server.seen) == requests


def test_a_server_that_stalls(serve: Callable[..., Any]) -> None:
    async def never(number: int, body: Any) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    server = serve(never)
    started = time.monotonic()
    (score,) = ask(server.url, rm_timeout=0.2, rm_attempts=2)
    assert isinstance(score, Timeout)
    assert score.seconds == 0.2
    assert time.monotonic() - started < 5
    assert len(server.seen) == 2


def test_a_server_that_hangs_up(serve: Callable[..., Any]) -> None:
    def cut(number: int, body: Any) -> web.Response:
        response = web.Response(text="0.5")
        response.headers["Content-Length"] = "100"
        return response

    server = serve(cut)
    (score,) = ask(server.url, rm_attempts=1, rm_timeout=2.0)
    assert isinstance(score, Invalid | Timeout)


def test_no_server() -> None:
    (score,) = ask("http://user:secret@127.0.0.1:1/x?key=secret", rm_attempts=2)
    assert isinstance(score, Invalid)
    assert "http://127.0.0.1:1/x cannot be reached" in score.detail
    assert "secret" not in score.detail


def test_retry_after_holds_everybody_back(serve: Callable[..., Any]) -> None:
    times = []

    def answer(number: int, body: Any) -> web.Response:
        times.append(time.monotonic())
        return web.json_response(1) if number > 1 else web.Response(status=429, headers={"Retry-After": "0.5"})

    server = serve(answer)
    assert ask(server.url, [SAMPLE] * 3, rm_concurrency=1) == [Scored(1.0)] * 3
    assert times[1] - times[0] >= 0.45


def test_the_token_is_sent_and_never_shown(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda number, body: web.Response(status=400, text=f"bad token {server.seen[0][1]['Authorization']}"))
    monkeypatch.setenv("MY_TOKEN", "tok-123")

    async def run() -> list[Score]:
        reward = create(Config.of(RemoteOptions(rm_url=server.url, rm_auth_env="MY_TOKEN"), RequestOptions(rm_attempts=1)))
        try:
            return await reward.score([SAMPLE])
        finally:
            await reward.close()

    (score,) = asyncio.run(run())
    assert server.seen[0][1]["Authorization"] == "Bearer tok-123"
    assert isinstance(score, Invalid)
    assert "tok-123" not in repr(score)
    assert "***" in score.detail


@pytest.mark.parametrize(
    "options",
    [{}, {"rm_url": "ftp://x/"}, {"rm_url": "localhost:80"}, {"rm_url": "http://x/", "rm_auth_env": "NOT_SET_ANYWHERE"}],
)
def test_nothing_to_ask(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="M295"):
        create(Config.of(RemoteOptions(**options)))


def test_a_sample_that_is_no_json() -> None:
    (score,) = ask("http://127.0.0.1:1/", [Sample(response="x", label={1, 2})])
    assert isinstance(score, Invalid)
    assert "cannot be sent" in score.detail
    assert shown("http://[broken") == "an address that cannot be read"
