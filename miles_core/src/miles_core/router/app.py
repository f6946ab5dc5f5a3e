"""The router: an HTTP server in front of the engines, with SGLang's routes."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.errors import MilesError
from miles_core.plugins.causes import describe
from miles_core.router.call import Call
from miles_core.router.chat import ChatEndpoint, Piece, model_chat
from miles_core.router.exchange import exchange_of
from miles_core.router.gate import BusyError, Gate
from miles_core.router.generate import PATIENCE, Event, Generator, refusal
from miles_core.router.health import INTERVAL, HealthMonitor
from miles_core.router.policy import POLICIES
from miles_core.router.pool import Pool
from miles_core.router.upstream import READ_BUFFER, AnswerError, Upstream, WorkerError
from miles_core.samples import GenerateRequest, SamplingParams
from miles_core.serving.server import MAX_BODY
from miles_core.serving.wire import DONE, decode_result, dumps, encode_call

if TYPE_CHECKING:
    import aiohttp
    from aiohttp import web

    from miles_core.protocols import RouterMiddleware

log = logging.getLogger(__name__)

TO_ALL = ("/abort_request", "/pause_generation", "/continue_generation", "/flush_cache")
"""Calls that every worker gets."""
DROPPED = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
        *("host", "content-length", "server", "date", "expect"),
    )
)
"""Headers that belong to one connection."""
RETRY_AFTER = "1"
"""Seconds after which a caller that was turned away may try again."""


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
        max_body: bytes of a request.
        checkpoint: of the model, whose tokenizer the chat endpoint takes; None for a router without one.
        template_options: further arguments of the model's chat template.
    """

    policy: str = "cache-aware"
    max_connections: int = 512
    max_waiting: int = 4096
    timeout: float | None = None
    failure_threshold: int = 3
    health_interval: float = INTERVAL
    patience: float = PATIENCE
    max_body: int = MAX_BODY
    checkpoint: Path | None = None
    template_options: dict[str, Any] | None = None


def router_app(settings: RouterSettings, urls: Sequence[str] = (), middlewares: Sequence[RouterMiddleware] = ()) -> web.Application:
    """The aiohttp application of a router.

    Args:
        urls: workers to begin with.
        middlewares: around what is passed on to workers; the last one is outermost.
    """
    from aiohttp import web

    router = _Router(settings, urls, middlewares)
    app = web.Application(client_max_size=settings.max_body, middlewares=[_errors])
    app.cleanup_ctx.append(router.life)
    for path in ("/add_worker", "/workers"):
        app.router.add_post(path, router.add)
    app.router.add_post("/remove_worker", router.remove)
    app.router.add_delete("/workers/{id}", router.remove)
    app.router.add_get("/list_workers", router.list_urls)
    app.router.add_get("/workers", router.list_workers)
    app.router.add_get("/health", router.health)
    app.router.add_route("*", "/{path:.*}", router.passed)
    return app


async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    from aiohttp import web

    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _error(error.status, f"{error.reason}: {request.method} {request.path}")
    except AnswerError as error:
        headers = {"Retry-After": RETRY_AFTER} if error.status == 503 else None
        return web.Response(body=error.body, status=error.status, content_type="application/json", headers=headers)
    except BusyError as error:
        return _error(503, f"the router is busy: {error}", {"Retry-After": RETRY_AFTER})
    except WorkerError as error:
        return _error(504 if error.silent else 502, str(error))
    except MilesError as error:
        return _error(500, error.line())
    except ValueError as error:
        return _error(400, str(error))
    except Exception as error:
        # A middleware is foreign code: what it raises is an answer, and does not end the router.
        log.exception("%s %s failed", request.method, request.path)
        return _error(500, f"the router failed: {describe(error)}")


_errors.__middleware_version__ = 1  # type: ignore[attr-defined]


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return _json({"error": {"message": " ".join(message.split()), "code": status}}, status, headers)


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    from aiohttp import web

    body = json.dumps(document, separators=(",", ":")).encode()
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


class _Router:
    def __init__(self, settings: RouterSettings, urls: Sequence[str], middlewares: Sequence[RouterMiddleware]) -> None:
        self.settings = settings
        self.gate = Gate(settings.max_connections, settings.max_waiting)
        self.pool = Pool(settings.failure_threshold, POLICIES[settings.policy]())
        for url in urls:
            self.pool.add(url)
        self.chat: ChatEndpoint | None = None
        if settings.checkpoint is not None:
            self.chat = model_chat(settings.checkpoint, self._ask, settings.template_options)
        self._chain = self._gated
        for middleware in middlewares:
            self._chain = _around(middleware, self._chain)

    async def life(self, app: web.Application) -> AsyncIterator[None]:
        """Connections and probes, while the application runs."""
        async with _session() as calls, _session() as probes:
            self.upstream = Upstream(self.pool, calls, self.settings.timeout)
            self.generator = Generator(self.pool, self.upstream, self.settings.patience)
            monitor = HealthMonitor(self.pool, probes, self.settings.health_interval)
            task = asyncio.create_task(monitor.run())
            yield
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def add(self, request: web.Request) -> web.Response:
        """Register a worker: ``?url=``, ``?worker_url=`` or the same in JSON."""
        self.pool.add(await _given_url(request))
        return _json({"status": "success", "worker_urls": {worker.url: worker.load for worker in self.pool.workers.values()}})

    async def remove(self, request: web.Request) -> web.Response:
        """Forget a worker, by its address or id."""
        number = request.match_info.get("id")
        urls = [worker.url for worker in self.pool.workers.values() if str(worker.number) == number]
        url = (urls or [""])[0] if number is not None else await _given_url(request)
        if not self.pool.remove(url):
            return _error(404, f"there is no worker {number if number is not None else url}")
        return _json({"status": "success", "worker_urls": {worker.url: worker.load for worker in self.pool.workers.values()}})

    async def list_urls(self, request: web.Request) -> web.Response:
        """The addresses of workers that take requests."""
        return _json({"urls": [worker.url for worker in self.pool.live]})

    async def list_workers(self, request: web.Request) -> web.Response:
        """Everything about all of them, and about the router."""
        router = {"in_flight": self.gate.inside, "waiting": self.gate.queued, "retries": self.generator.retries}
        return _json({"workers": [worker.facts() for worker in self.pool.workers.values()], "router": router})

    async def health(self, request: web.Request) -> web.Response:
        """Whether any worker takes requests."""
        return _json({"status": "ok"}) if self.pool.live else _error(503, "no worker is well")

    async def passed(self, request: web.Request) -> web.StreamResponse:
        """Anything else goes to workers, by way of the middlewares."""
        return await self._chain(request)

    async def _gated(self, request: web.Request) -> web.StreamResponse:
        if self.chat is not None and self.chat.serves(request.path):
            return await self.chat.handle(request, await exchange_of(request).body())
        if request.method == "POST" and request.path in TO_ALL:
            return await self._to_all(request)
        async with self.gate.place():
            if request.method == "POST" and request.path == "/generate":
                return await self._generate(request)
            return await self._to_one(request)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        exchange = exchange_of(request)
        call = Call.of(await exchange.document())
        answers = self.generator.answer(call)

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
        return _json(ordered if call.batched else ordered[0])

    async def _ask(self, ids: list[int], params: SamplingParams, *, routed: bool, stream: bool) -> AsyncGenerator[Piece, None]:
        """A reply of the chat endpoint, from a worker."""
        request = GenerateRequest(uuid.uuid4().hex, ids, params, return_routed_experts=routed)
        call = Call.of(json.loads(encode_call([request], batched=False, stream=stream)))
        async with self.gate.place(), aclosing(self.generator.answer(call)) as answers:
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

    async def _to_all(self, request: web.Request) -> web.StreamResponse:
        """The same call to every worker. Those in quarantine get it as well, and what they make of it does not count."""
        from aiohttp import web

        body = await exchange_of(request).body()
        if request.path == "/abort_request" and (await exchange_of(request).document()).get("abort_all") is True:
            self.generator.aborted()

        async def one(worker: Any) -> tuple[int, bytes, str]:
            async with self.upstream.open(worker, "POST", request.path, body, load=0) as response:
                return response.status, await response.read(), response.content_type

        live = self.pool.live
        others = [worker for worker in self.pool.workers.values() if worker.quarantined]
        answers = await asyncio.gather(*(one(worker) for worker in [*live, *others]), return_exceptions=True)
        good: tuple[int, bytes, str] | None = None
        for answer in answers[: len(live)]:
            if isinstance(answer, WorkerError):
                continue  # it counted as a failure: a worker that is gone has nothing to end
            if isinstance(answer, BaseException):
                raise answer
            if answer[0] != 200:
                raise AnswerError(answer[0], answer[1])
            good = answer
        if good is None:
            raise refusal(503, f"none of {len(self.pool.workers)} workers answers")
        return web.Response(body=good[1], content_type=good[2])

    async def _to_one(self, request: web.Request) -> web.StreamResponse:
        """Any other call. What only reads is tried on another worker; the rest might happen twice."""
        from aiohttp import web

        body = await exchange_of(request).body()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
        headers.setdefault("Accept-Encoding", "identity")
        tried: set[Any] = set()
        while True:
            worker = self.pool.choose((), tried)
            if worker is None:
                raise refusal(503, f"none of {len(self.pool.workers)} workers is well")
            tried.add(worker)
            response: web.StreamResponse | None = None
            try:
                async with self.upstream.open(worker, request.method, request.raw_path, body, headers) as answer:
                    kept = {name: value for name, value in answer.headers.items() if name.lower() not in DROPPED}
                    response = web.StreamResponse(status=answer.status, headers=kept)
                    async with _for_caller():
                        await response.prepare(request)
                    async for chunk in answer.content.iter_any():
                        async with _for_caller():
                            await response.write(chunk)
                    async with _for_caller():
                        await response.write_eof()
                    return response
            except _CallerGoneError:
                assert response is not None
                return response
            except WorkerError:
                if response is not None or request.method not in ("GET", "HEAD") or len(tried) >= len(self.pool.workers):
                    raise


class _CallerGoneError(Exception):
    """The connection to the caller broke, which is no failure of the worker."""


@asynccontextmanager
async def _for_caller() -> AsyncIterator[None]:
    try:
        yield
    except OSError as error:
        raise _CallerGoneError from error


def _around(middleware: RouterMiddleware, inner: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    async def call(request: web.Request) -> web.StreamResponse:
        return await middleware(request, inner)

    return call


async def _given_url(request: web.Request) -> str:
    found = request.query.get("url") or request.query.get("worker_url")
    if found is None:
        document = await exchange_of(request).document()
        found = document.get("url") or document.get("worker_url")
    if not isinstance(found, str):
        raise ValueError("give url or worker_url")
    return found


def _session() -> aiohttp.ClientSession:
    import aiohttp

    # How much is in flight is the gate's business; a worker's bytes go on as they are.
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, read_bufsize=READ_BUFFER, auto_decompress=False)
