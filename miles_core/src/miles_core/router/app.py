"""The router: an HTTP server in front of the engines, with SGLang's routes."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.router.answers import Handler, errors, explained, json_answer, raw, refused
from miles_core.router.call import Call
from miles_core.router.chat import ChatEndpoint, Piece, model_chat
from miles_core.router.exchange import exchange_of
from miles_core.router.forward import TO_ALL, to_all, to_one
from miles_core.router.front import Front
from miles_core.router.gate import Gate
from miles_core.router.generate import ATTEMPTS, PATIENCE, Event, Generator
from miles_core.router.health import INTERVAL, HealthMonitor
from miles_core.router.metrics import CONTENT_TYPE, Tally, exposition
from miles_core.router.policy import POLICIES
from miles_core.router.pool import Pool
from miles_core.router.upstream import READ_BUFFER, AnswerError, Upstream
from miles_core.samples import GenerateRequest, SamplingParams
from miles_core.serving.key import asks_for
from miles_core.serving.server import MAX_BODY
from miles_core.serving.wire import DONE, decode_result, dumps, encode_call

if TYPE_CHECKING:
    import aiohttp
    from aiohttp import web

    from miles_core.protocols import RouterMiddleware


GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@dataclass(frozen=True)
class RouterSettings:
    """How a router works.

    Attributes:
        policy: name in :data:`miles_core.router.policy.POLICIES`.
        max_connections: calls that are passed on at once.
        max_waiting: further ones that wait; any more are answered with 503.
        timeout: seconds that a worker may be silent in a call; None for any time.
        failure_threshold: failures in a row that put a worker in quarantine.
        health_interval: seconds between probes of a worker.
        patience: seconds that a call waits for a worker when there is none.
        attempts: times that a prompt is sent to a worker before its call fails.
        max_body: bytes of a request.
        checkpoint: of the model, whose tokenizer the chat endpoint takes; None for a router without one.
        template_options: further arguments of the model's chat template.
        api_key: bearer token that callers have to show, and that workers are shown; None for none.
    """

    policy: str = "cache-aware"
    max_connections: int = 512
    max_waiting: int = 4096
    timeout: float | None = None
    failure_threshold: int = 3
    health_interval: float = INTERVAL
    patience: float = PATIENCE
    attempts: int = ATTEMPTS
    max_body: int = MAX_BODY
    checkpoint: Path | None = None
    template_options: dict[str, Any] | None = None
    api_key: str | None = field(default=None, repr=False)


def router_app(settings: RouterSettings, urls: Sequence[str] = (), middlewares: Sequence[RouterMiddleware] = ()) -> web.Application:
    """The aiohttp application of a router.

    Args:
        urls: workers to begin with.
        middlewares: around what is passed on to workers; the last one is outermost.
    """
    return RouterServer(settings, urls, middlewares).app()


class RouterServer:
    """What a router's application is made of. The coroutines that are no handlers run in the loop that serves it."""

    def __init__(self, settings: RouterSettings, urls: Sequence[str] = (), middlewares: Sequence[RouterMiddleware] = ()) -> None:
        self.settings = settings
        self.gate = Gate(settings.max_connections, settings.max_waiting)
        self.pool = Pool(settings.failure_threshold, POLICIES[settings.policy]())
        self.tally = Tally()
        self._middlewares = tuple(middlewares)
        self._fronts: set[Front] = set()
        for url in urls:
            self.pool.add(url)
        self.chat: ChatEndpoint | None = None
        if settings.checkpoint is not None:
            self.chat = model_chat(settings.checkpoint, self._ask, settings.template_options)
        self._chain: Handler = self._gated
        for middleware in middlewares:
            self._chain = _around(middleware, self._chain)

    def app(self) -> web.Application:
        """The application, to be served once."""
        from aiohttp import web

        keyed = [asks_for(self.settings.api_key)] if self.settings.api_key is not None else []
        app = web.Application(client_max_size=self.settings.max_body, middlewares=[_counted(self.tally), *keyed, errors])
        app.cleanup_ctx.append(self._life)
        app.router.add_post("/generate", self._passed)
        for path in ("/add_worker", "/workers"):
            app.router.add_post(path, self._add)
        app.router.add_post("/remove_worker", self._remove)
        app.router.add_delete("/workers/{id}", self._remove)
        app.router.add_get("/list_workers", self._list_urls)
        app.router.add_get("/workers", self._list_workers)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_route("*", "/{path:.*}", self._passed)
        return app

    def front(self, handler: asyncio.Protocol) -> asyncio.Protocol:
        """The protocol of a caller's connection, around the application's: calls that middlewares need not see go a short way."""
        if self._middlewares:
            return handler
        return Front(self._quick, handler, self.settings.api_key, self._fronts, self.settings.max_body)

    async def probe(self) -> dict[str, str]:
        """Look after every worker now. Returns why, for those that do not answer."""
        await self.monitor.sweep()
        return {worker.url: worker.reason for worker in self.pool.workers.values() if worker.reason}

    async def add_worker(self, url: str) -> None:
        """Register a worker; one that is registered already leaves quarantine."""
        self.pool.add(url)

    async def remove_worker(self, url: str) -> None:
        """Forget a worker that is gone; others answer what it has not."""
        worker = self.pool.remove(url)
        if worker is not None:
            self.upstream.drop(worker)

    async def published(self, version: int) -> None:
        """Every worker serves these weights."""
        self.pool.saw_version(version)

    async def _life(self, app: web.Application) -> AsyncIterator[None]:
        """Connections and probes, while the application runs."""
        key = self.settings.api_key
        async with _session(key) as calls, _session(key) as probes:
            self.upstream = Upstream(self.pool, calls, self.settings.timeout, key)
            self.generator = Generator(self.pool, self.upstream, self.settings.patience, self.settings.attempts)
            self.monitor = HealthMonitor(self.pool, probes, self.settings.health_interval)
            task = asyncio.create_task(self.monitor.run())
            yield
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for front in list(self._fronts):
                front.close()
            self.upstream.close()

    async def _quick(self, body: bytes, prompt: bytes) -> bytes:
        """The answer to a call that goes the short way."""
        try:
            aborts = self.generator.aborts
            async with self.gate.place():
                answer = await self.generator.one(prompt, body, aborts)
        except Exception as error:
            failure = explained(error)
            self.tally.answers[failure[0]] += 1
            return raw(*failure)
        self.tally.answers[200] += 1
        return GOOD % len(answer) + answer

    async def _add(self, request: web.Request) -> web.Response:
        """Register a worker: ``?url=``, ``?worker_url=`` or the same in JSON."""
        self.pool.add(await _given_url(request))
        return self._loads()

    async def _remove(self, request: web.Request) -> web.Response:
        """Forget a worker, by its address or id."""
        number = request.match_info.get("id")
        urls = [worker.url for worker in self.pool.workers.values() if str(worker.number) == number]
        url = (urls or [""])[0] if number is not None else await _given_url(request)
        if self.pool.remove(url) is None:
            return refused(404, f"there is no worker {number if number is not None else url}")
        return self._loads()

    def _loads(self) -> web.Response:
        return json_answer({"status": "success", "worker_urls": {worker.url: worker.load for worker in self.pool.workers.values()}})

    async def _list_urls(self, request: web.Request) -> web.Response:
        """The addresses of workers that take requests."""
        return json_answer({"urls": [worker.url for worker in self.pool.live]})

    async def _list_workers(self, request: web.Request) -> web.Response:
        """Everything about all of them, and about the router."""
        router = {"in_flight": self.gate.inside, "waiting": self.gate.queued, "retries": self.generator.retries}
        return json_answer({"workers": [worker.facts() for worker in self.pool.workers.values()], "router": router})

    async def _health(self, request: web.Request) -> web.Response:
        """Whether any worker takes requests."""
        return json_answer({"status": "ok"}) if self.pool.live else refused(503, "no worker is well")

    async def _metrics(self, request: web.Request) -> web.Response:
        from aiohttp import web

        text = exposition(self.pool, self.gate, self.tally, self.generator.retries)
        return web.Response(text=text, content_type=CONTENT_TYPE)

    async def _passed(self, request: web.Request) -> web.StreamResponse:
        """Anything else goes to workers, by way of the middlewares."""
        return await self._chain(request)

    async def _gated(self, request: web.Request) -> web.StreamResponse:
        posted = request.method == "POST"
        if posted and request.path == "/generate":
            aborts = self.generator.aborts
            async with self.gate.place():
                return await self._generate(request, aborts)
        if self.chat is not None and self.chat.serves(request.path):
            return await self.chat.handle(request, await exchange_of(request).body())
        if posted and request.path in TO_ALL:
            if request.path == "/abort_request" and (await exchange_of(request).document()).get("abort_all") is True:
                self.generator.aborted()
            return await to_all(request, self.pool, self.upstream)
        async with self.gate.place():
            return await to_one(request, self.pool, self.upstream)

    async def _generate(self, request: web.Request, aborts: int) -> web.StreamResponse:
        from aiohttp import web

        exchange = exchange_of(request)
        call = Call.of(await exchange.document())
        if not (call.batched or call.stream or exchange.answered):
            body = await self.generator.one(call.prompts[0], await exchange.body(), aborts)
            return web.Response(body=body, content_type="application/json")
        answers = self.generator.answer(call, aborts)

        def tell(event: Event) -> None:
            if exchange.answered and (event[1].get("meta_info") or {}).get("finish_reason") is not None:
                exchange.answer(*event)

        if call.stream:
            return await self._stream(request, answers, tell)
        found: dict[int, dict[str, Any]] = {}
        async with aclosing(answers):
            async for event in answers:
                tell(event)
                found[event[0]] = event[1]
        ordered = [found[index] for index in range(len(call.prompts))]
        return json_answer(ordered if call.batched else ordered[0])

    async def _ask(self, ids: list[int], params: SamplingParams, *, routed: bool, stream: bool) -> AsyncGenerator[Piece, None]:
        """A reply of the chat endpoint, from a worker."""
        request = GenerateRequest(uuid.uuid4().hex, ids, params, return_routed_experts=routed)
        call = Call.of(json.loads(encode_call([request], batched=False, stream=stream)))
        aborts = self.generator.aborts
        async with self.gate.place(), aclosing(self.generator.answer(call, aborts)) as answers:
            async for _, document in answers:
                yield str(document.get("text", "")), decode_result(document, request.rid)

    async def _stream(self, request: web.Request, answers: Any, tell: Callable[[Event], None]) -> web.StreamResponse:
        from aiohttp import web

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        try:
            async with aclosing(answers):
                async for event in answers:
                    tell(event)
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(b"data: " + json.dumps(event[1], separators=(",", ":")).encode() + b"\n\n")
        except AnswerError as error:
            if not response.prepared:
                raise
            # The status line is gone, so the error travels as an event and the stream ends.
            document = {"error": {"message": error.message(), "code": error.status}}
            await response.write(b"data: " + dumps(document) + b"\n\n")
        if not response.prepared:
            await response.prepare(request)
        await response.write(DONE)
        await response.write_eof()
        return response


def _around(middleware: RouterMiddleware, inner: Handler) -> Handler:
    async def call(request: web.Request) -> web.StreamResponse:
        return await middleware(request, inner)

    return call


def _counted(tally: Tally) -> Any:
    """A middleware of aiohttp that counts answers."""

    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        tally.answers[response.status] += 1
        return response

    count.__middleware_version__ = 1  # type: ignore[attr-defined]
    return count


async def _given_url(request: web.Request) -> str:
    found = request.query.get("url") or request.query.get("worker_url")
    if found is None:
        document = await exchange_of(request).document()
        found = document.get("url") or document.get("worker_url")
    if not isinstance(found, str):
        raise ValueError("give url or worker_url")
    return found


def _session(api_key: str | None) -> aiohttp.ClientSession:
    import aiohttp

    # How much is in flight is the gate's business; a worker's bytes go on as they are.
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key is not None else None
    return aiohttp.ClientSession(connector=connector, read_bufsize=READ_BUFFER, auto_decompress=False, headers=headers)
