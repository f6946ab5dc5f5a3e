"""Grading with any reward of the package."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from miles_core.config import RewardOptions, RolloutOptions
from miles_core.options import Config
from miles_core.samples import Sample, Score
from miles_rewards import plugin
from miles_rewards.judge.options import JudgeOptions
from miles_rewards.remote.options import RemoteOptions, RequestOptions

Grade = Callable[..., list[Score]]
NOBODY = "http://127.0.0.1:1/"
"""An address where no server listens."""


def make(name: str, *options: object) -> Any:
    """The reward of that name, as a run makes it."""
    record = {record.name: record for record in plugin.miles_reward()}[name]
    module, _, attribute = record.create.partition(":")
    given = options or (
        RewardOptions(reward_timeout=20.0),
        RolloutOptions(rollout_max_response_len=100),
        RemoteOptions(rm_url=NOBODY),
        JudgeOptions(judge_url=NOBODY, judge_model="none"),
        RequestOptions(rm_attempts=1, rm_timeout=5.0),
    )
    return getattr(importlib.import_module(module), attribute)(Config.of(*given))


@pytest.fixture(scope="session")
def grade() -> Iterator[Grade]:
    """``grade("math", samples)``: their scores. Rewards live as long as the session, so worker processes start once."""
    used: dict[str, Any] = {}

    with asyncio.Runner() as runner:

        def score(name: str, samples: Sequence[Sample], *options: object) -> list[Score]:
            key = f"{name} {options}"
            if key not in used:
                used[key] = make(name, *options)
            return list(runner.run(used[key].score(samples)))

        yield score
        for reward in used.values():
            runner.run(reward.close())


@pytest.fixture(scope="session")
def data() -> Callable[[str], list[dict[str, Any]]]:
    """Rows of a file below ``MILES_TEST_DATA``; skips without it."""

    def read(path: str) -> list[dict[str, Any]]:
        root = os.environ.get("MILES_TEST_DATA")
        if not root or not (Path(root) / path).exists():
            pytest.skip(f"MILES_TEST_DATA has no {path}")
        with open(Path(root) / path, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    return read


class Server:
    """A real HTTP server on this machine, in a thread of its own, whose answers a test scripts.

    Attributes:
        url: where it is.
        seen: the body and headers of every request, in order.
        most: most requests that were in work at once.
    """

    def __init__(self, answer: Callable[[int, Any], Any]) -> None:
        self.seen: list[tuple[Any, dict[str, str]]] = []
        self.most = self._now = 0
        self._answer = answer
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(20)

    async def _handle(self, request: Any) -> Any:
        body = await request.json()
        self.seen.append((body, dict(request.headers)))
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            answer = self._answer(len(self.seen), body)
            return await answer if inspect.isawaitable(answer) else answer
        finally:
            self._now -= 1

    def _serve(self) -> None:
        from aiohttp import web

        async def run() -> None:
            self._ended = asyncio.Event()
            application = web.Application(client_max_size=1 << 26)
            application.router.add_route("*", "/{tail:.*}", self._handle)
            runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/reward"
            self._ready.set()
            await self._ended.wait()
            await runner.cleanup()

        self._loop.run_until_complete(run())
        self._loop.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[int, Any], Any]], Server]]:
    """``serve(lambda number, body: response)``: a running server; the answer may be a coroutine."""
    running: list[Server] = []

    def start(answer: Callable[[int, Any], Any]) -> Server:
        running.append(Server(answer))
        return running[-1]

    yield start
    for server in running:
        server.stop()
