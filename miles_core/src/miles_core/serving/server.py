"""The HTTP server of an engine, with SGLang's routes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from miles_core.errors import MilesError, RunError
from miles_core.serving import wire
from miles_core.serving.key import asks_for
from miles_core.serving.service import PAUSE_MODES, EngineService

if TYPE_CHECKING:
    from aiohttp import web

    from miles_core.protocols import RouterMiddleware

MAX_BODY = 256 * 1024 * 1024
"""Largest body of a request, in bytes."""


def engine_app(
    service: EngineService,
    middlewares: Sequence[RouterMiddleware] = (),
    max_body: int = MAX_BODY,
    api_key: str | None = None,
) -> web.Application:
    """The aiohttp application around an engine.

    Args:
        service: the engine.
        middlewares: applied in order, the last one outermost.
        max_body: largest accepted body, in bytes; a larger one is answered with 413.
        api_key: bearer token that callers have to show, but for ``/health``; None for none.
    """
    from aiohttp import web

    handlers = _Handlers(service)
    # aiohttp's first middleware is the outermost; error answers are made inside all of them so that they see them.
    keyed = [asks_for(api_key)] if api_key is not None else []
    app = web.Application(client_max_size=max_body, middlewares=[*keyed, *(_adapted(m) for m in reversed(middlewares)), _errors])
    get, post = app.router.add_get, app.router.add_post
    post("/generate", handlers.generate)
    post("/abort_request", handlers.abort)
    get("/health", handlers.health)
    get("/health_generate", handlers.health_generate)
    for path in ("/server_info", "/get_server_info"):
        get(path, handlers.server_info)
    for path in ("/model_info", "/get_model_info", "/get_weight_version"):
        get(path, handlers.model_info)
    for path, handler in (
        ("/pause_generation", handlers.pause),
        ("/continue_generation", handlers.resume),
        ("/flush_cache", handlers.flush),
        ("/release_memory_occupation", handlers.release),
        ("/resume_memory_occupation", handlers.resume_memory),
    ):
        post(path, handler)
    get("/flush_cache", handlers.flush)
    return app


def _adapted(middleware: RouterMiddleware) -> Any:
    from aiohttp import web

    @web.middleware
    async def call(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        return await middleware(request, handler)

    return call


async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    from aiohttp import web

    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _error(error.status, f"{error.reason}: {request.method} {request.path}")
    except MilesError as error:
        # A refusal depends on the engine's state, a failure of the engine is its own fault.
        return _error(400 if not isinstance(error, RunError) else 500, error.line())
    except ValueError as error:
        return _error(400, str(error))


_errors.__middleware_version__ = 1  # type: ignore[attr-defined]


def _error(status: int, message: str) -> web.Response:
    from aiohttp import web

    document = {"error": {"message": " ".join(message.split()), "code": status}}
    return web.Response(body=wire.dumps(document), status=status, content_type="application/json")


def _json(document: Any) -> web.Response:
    from aiohttp import web

    return web.Response(body=wire.dumps(document), content_type="application/json")


async def _body(request: web.Request) -> dict[str, Any]:
    data = await request.read()
    if not data.strip():
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("the body must be a JSON object")
    return document


class _Handlers:
    def __init__(self, service: EngineService) -> None:
        self.service = service

    async def generate(self, request: web.Request) -> web.StreamResponse:
        call = wire.decode_call(await _body(request))
        if call.stream:
            return await self._stream(request, call)
        found: dict[str, Any] = {}
        async with aclosing(self.service.submit(call.requests)) as answers_as_they_end:
            async for results in answers_as_they_end:
                for result in results:
                    found[result.rid] = wire.encode_result(result, return_logprob=call.return_logprob)
        answers = [found[r.rid] for r in call.requests]
        return _json(answers if call.batched else answers[0])

    async def _stream(self, request: web.Request, call: wire.GenerateCall) -> web.StreamResponse:
        from aiohttp import web

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        places = {r.rid: i for i, r in enumerate(call.requests)}
        try:
            async with aclosing(self.service.submit(call.requests)) as answers_as_they_end:
                async for results in answers_as_they_end:
                    events = []
                    for result in results:
                        index = places[result.rid] if call.batched else None
                        document = wire.encode_result(result, return_logprob=call.return_logprob, index=index)
                        events.append(b"data: " + wire.dumps(document) + b"\n\n")
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(b"".join(events))
        except MilesError as error:
            if not response.prepared:
                raise
            # The status line is gone, so the error travels as an event and the stream ends.
            document = {"error": {"message": error.line(), "code": 500}}
            await response.write(b"data: " + wire.dumps(document) + b"\n\n")
        if not response.prepared:
            await response.prepare(request)
        await response.write(wire.DONE)
        await response.write_eof()
        return response

    async def abort(self, request: web.Request) -> web.Response:
        from aiohttp import web

        body = await _body(request)
        if body.get("abort_all") is True:
            await self.service.abort(None)
        else:
            rid = body.get("rid")
            rids = rid if isinstance(rid, list) else [rid]
            if not all(isinstance(r, str) and r for r in rids):
                raise ValueError("give rid, or abort_all: true")
            await self.service.abort([str(r) for r in rids])
        return web.Response()

    async def health(self, request: web.Request) -> web.Response:
        return await self._health(generate=False)

    async def health_generate(self, request: web.Request) -> web.Response:
        return await self._health(generate=True)

    async def _health(self, generate: bool) -> web.Response:
        from aiohttp import web

        try:
            await self.service.health(generate)
        except MilesError as error:
            return _error(503, error.line())
        return web.Response()

    async def server_info(self, request: web.Request) -> web.Response:
        return _json(self.service.info())

    async def model_info(self, request: web.Request) -> web.Response:
        return _json(self.service.model_info())

    async def pause(self, request: web.Request) -> web.Response:
        given = (await _body(request)).get("mode") or "abort"
        mode = next((m for m in PAUSE_MODES if m == given), None)
        if mode is None:
            raise ValueError(f"mode must be one of {', '.join(PAUSE_MODES)}, not {given!r}")
        await self.service.pause(mode)
        return _json({"status": "ok", "message": f"generation paused ({mode})"})

    async def resume(self, request: web.Request) -> web.Response:
        await self.service.resume()
        return _json({"status": "ok", "message": "generation continues"})

    async def flush(self, request: web.Request) -> web.Response:
        await self.service.flush()
        return _json({"success": True})

    async def release(self, request: web.Request) -> web.Response:
        await self.service.release_memory(_tags(await _body(request)))
        return _json(None)

    async def resume_memory(self, request: web.Request) -> web.Response:
        await self.service.resume_memory(_tags(await _body(request)))
        return _json(None)


def _tags(body: dict[str, Any]) -> list[str] | None:
    tags = body.get("tags")
    if tags is not None and (not isinstance(tags, list) or not all(isinstance(t, str) for t in tags)):
        raise ValueError("tags must be a list of texts")
    return tags
