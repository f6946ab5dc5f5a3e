"""A router and workers in one event loop, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from miles_core.router import RouterServer, RouterSettings


class FakeWorker:
    """An engine's HTTP: answers each prompt with its own first token. Attributes say how it behaves from now on.

    Attributes:
        hold: answers wait until it is set.
        mood: ``well``; ``busy`` (503), ``refuses`` (400), ``cuts`` the connection, ``cuts late``: after the first of a stream.
        seen: bodies of ``/generate``; ``calls``: every path that came.
        most: the most calls at a time.
    """

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.hold.set()
        self.mood = "well"
        self.healthy = True
        self.version = "1"
        self.seen: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.headers: list[str | None] = []
        self.now = self.most = self.gone = 0
        self.url = ""

    async def __aenter__(self) -> FakeWorker:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0 if not self.url else int(self.url.rsplit(":", 1)[1])).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        self.headers.append(request.headers.get("Authorization"))
        if request.path == "/health":
            return web.Response(status=200 if self.healthy else 503)
        if request.path == "/model_info":
            return web.json_response({"weight_version": self.version})
        if request.path != "/generate":
            if self.mood == "cuts":
                request.transport.abort()
            return web.Response(text=f"{request.method} {request.path_qs}", headers={"X-From": self.url})
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._generate(request)
        except asyncio.CancelledError:
            self.gone += 1
            raise
        finally:
            self.now -= 1

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        document = await request.json()
        self.seen.append(document)
        if self.mood == "cuts":
            request.transport.abort()
        await self.hold.wait()
        if self.mood == "busy":
            return web.Response(status=503, text="no room")
        if self.mood == "refuses":
            return web.json_response({"error": {"message": "no such thing"}}, status=400)
        prompts = document["input_ids"]
        batched = isinstance(prompts[0], list)
        answers = [self._answer(ids) for ids in (prompts if batched else [prompts])]
        if not document.get("stream"):
            return web.json_response(answers if batched else answers[0])
        response = web.StreamResponse()
        await response.prepare(request)
        for index, answer in enumerate(answers):
            await response.write(b"data: " + json.dumps({**answer, "index": index}).encode() + b"\n\n")
            if self.mood == "cuts late":
                request.transport.abort()
                return response
        await response.write(b"data: [DONE]\n\n")
        return response

    def _answer(self, ids: list[int]) -> dict[str, Any]:
        meta = {
            "id": "x",
            "finish_reason": {"type": "length", "length": 1},
            "prompt_tokens": len(ids),
            "weight_version": self.version,
            "output_token_logprobs": [[-0.5, ids[0], None]],
        }
        return {"text": str(ids[0]), "output_ids": [ids[0]], "meta_info": meta}


@dataclass
class Stage:
    """A router, its workers, and a caller."""

    router: RouterServer
    url: str
    workers: list[FakeWorker]
    caller: aiohttp.ClientSession
    stack: AsyncExitStack = field(repr=False)

    async def generate(self, ids: list[Any], **further: Any) -> tuple[int, Any]:
        """Status and document of the answer to one call."""
        return await self.post("/generate", {"input_ids": ids, **further})

    async def post(self, path: str, document: Any, **options: Any) -> tuple[int, Any]:
        """Status and document of the answer."""
        async with self.caller.post(self.url + path, json=document, **options) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of the answer."""
        async with self.caller.get(self.url + path) as response:
            return response.status, await response.text()

    async def stream(self, prompts: list[list[int]]) -> list[dict[str, Any]]:
        """The events of a streamed call."""
        body = {"input_ids": prompts, "stream": True}
        async with self.caller.post(f"{self.url}/generate", json=body) as response:
            assert response.status == 200
            lines = (await response.text()).split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line[5:]) for line in lines[:-2]]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what must come to be."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def _stage(count: int, settings: RouterSettings | None, middlewares: tuple[Any, ...], short: bool) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(FakeWorker()) for _ in range(count)]
        settings = settings or RouterSettings(policy="least-loaded", health_interval=0.05, patience=0.3)
        router = RouterServer(settings, [worker.url for worker in workers], middlewares)
        runner = web.AppRunner(router.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        made = runner.server
        assert made is not None
        wrap = router.front if short else (lambda protocol: protocol)
        server = await asyncio.get_running_loop().create_server(lambda: wrap(made()), "127.0.0.1", 0)
        stack.callback(server.close)
        caller = await stack.enter_async_context(aiohttp.ClientSession())
        yield Stage(router, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", workers, caller, stack)


Scene = Callable[[Stage], Coroutine[Any, Any, None]]


@pytest.fixture
def play() -> Callable[..., None]:
    """Runs a scene on a stage of its own."""

    def run(
        scene: Scene, count: int = 2, settings: RouterSettings | None = None, middlewares: tuple[Any, ...] = (), short: bool = True
    ) -> None:
        async def act() -> None:
            async with asyncio.timeout(30), _stage(count, settings, middlewares, short) as stage:
                await scene(stage)

        asyncio.run(act())

    return run
