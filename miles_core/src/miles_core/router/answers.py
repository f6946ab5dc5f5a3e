"""The router's own answers: JSON, errors, and who is turned away."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
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
    except AnswerError as error:
        headers = RETRY_AFTER if error.status == 503 else None
        return web.Response(body=error.body, status=error.status, content_type="application/json", headers=headers)
    except BusyError as error:
        return refused(503, f"the router is busy: {error}", RETRY_AFTER)
    except WorkerError as error:
        return refused(504 if error.silent else 502, str(error))
    except MilesError as error:
        return refused(500, error.line())
    except ValueError as error:
        return refused(400, str(error))
    except Exception as error:
        # A middleware is foreign code: what it raises is an answer, and does not end the router.
        log.exception("%s %s failed", request.method, request.path)
        return refused(500, f"the router failed: {describe(error)}")


errors.__middleware_version__ = 1  # type: ignore[attr-defined]


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error in the form that engines give it."""
    return json_answer({"error": {"message": " ".join(message.split()), "code": status}}, status, headers)


def json_answer(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A document as an answer."""
    from aiohttp import web

    body = json.dumps(document, separators=(",", ":")).encode()
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
