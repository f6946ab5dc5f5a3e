"""Calls that are passed on as they are: to one worker, or to all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from miles_core.router.exchange import exchange_of
from miles_core.router.generate import refusal
from miles_core.router.pool import Pool, Worker
from miles_core.router.upstream import AnswerError, Upstream, WorkerError

if TYPE_CHECKING:
    from aiohttp import web

TO_ALL = ("/abort_request", "/pause_generation", "/continue_generation", "/flush_cache")
"""Calls that every worker gets."""
DROPPED = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
        *("host", "content-length", "server", "date", "expect"),
    )
)
"""Headers that belong to one connection."""


async def to_all(request: web.Request, pool: Pool, upstream: Upstream) -> web.StreamResponse:
    """The same call to every worker. Those in quarantine get it as well, and what they make of it does not count.

    Raises:
        AnswerError: a worker's error; or 503, none of them answers, unless they were only to end what they do.
    """
    from aiohttp import web

    body = await exchange_of(request).body()

    async def one(worker: Worker) -> tuple[int, bytes, str]:
        async with upstream.open(worker, "POST", request.path, body, load=0) as response:
            return response.status, await response.read(), response.content_type

    live = pool.live
    others = [worker for worker in pool.workers.values() if worker.quarantined]
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
    if good is None and request.path == "/abort_request":
        return web.json_response({"success": True})  # nobody has anything to end
    if good is None:
        raise refusal(503, f"none of {len(pool.workers)} workers answers")
    return web.Response(body=good[1], content_type=good[2])


async def to_one(request: web.Request, pool: Pool, upstream: Upstream) -> web.StreamResponse:
    """Any other call. What only reads is tried on another worker; the rest might happen twice.

    Raises:
        AnswerError: 503, no worker is well.
        WorkerError: the worker went away.
    """
    from aiohttp import web

    body = await exchange_of(request).body()
    headers = {name: value for name, value in request.headers.items() if name.lower() not in DROPPED}
    headers.setdefault("Accept-Encoding", "identity")
    tried: set[Any] = set()
    while True:
        worker = pool.choose((), tried)
        if worker is None:
            raise refusal(503, f"none of {len(pool.workers)} workers is well")
        tried.add(worker)
        response: web.StreamResponse | None = None
        try:
            async with upstream.open(worker, request.method, request.raw_path, body, headers) as answer:
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
            if response is not None or request.method not in ("GET", "HEAD") or len(tried) >= len(pool.workers):
                raise


class _CallerGoneError(Exception):
    """The connection to the caller broke, which is no failure of the worker."""


@asynccontextmanager
async def _for_caller() -> AsyncIterator[None]:
    try:
        yield
    except OSError as error:
        raise _CallerGoneError from error
