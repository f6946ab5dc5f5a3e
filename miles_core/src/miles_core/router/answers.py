"""The router's own answers: JSON, errors, and who is turned away."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from miles_core.errors import MilesError
from miles_core.plugins.causes import describe
from miles_core.router.gate import BusyError
from miles_core.router.upstream import AnswerError, WorkerError

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]
RETRY_AFTER = {"Retry-After": "1"}
"""For a caller that was turned away: seconds after which it may try again."""


async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What handlers raise, as answers."""
    from aiohttp import web

    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return refused(error.status, f"{error.reason}: {request.method} {request.path}")
    except Exception as error:
        status, body, headers = explained(error)
        return web.Response(body=body, status=status, content_type="application/json", headers=headers)


errors.__middleware_version__ = 1  # type: ignore[attr-defined]


def explained(error: Exception) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of the answer that an error makes."""
    if isinstance(error, AnswerError):
        return error.status, error.body, RETRY_AFTER if error.status == 503 else {}
    if isinstance(error, BusyError):
        return 503, _document(503, f"the router is busy: {error}"), RETRY_AFTER
    status, text = 500, ""
    if isinstance(error, WorkerError):
        status, text = 504 if error.silent else 502, str(error)
    elif isinstance(error, MilesError):
        text = error.line()
    elif isinstance(error, ValueError):
        status, text = 400, str(error)
    else:
        # A middleware is foreign code: what it raises is an answer, and does not end the router.
        log.error("a request failed", exc_info=error)
        text = f"the router failed: {describe(error)}"
    return status, _document(status, text), {}


def raw(status: int, body: bytes, headers: dict[str, str]) -> bytes:
    """An answer as it goes over the connection."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error in the form that engines give it."""
    from aiohttp import web

    return web.Response(body=_document(status, message), status=status, content_type="application/json", headers=headers)


def _document(status: int, message: str) -> bytes:
    return json.dumps({"error": {"message": " ".join(message.split()), "code": status}}, separators=(",", ":")).encode()


def json_answer(document: Any) -> web.Response:
    """A document as an answer."""
    from aiohttp import web

    body = json.dumps(document, separators=(",", ":")).encode()
    return web.Response(body=body, content_type="application/json")
