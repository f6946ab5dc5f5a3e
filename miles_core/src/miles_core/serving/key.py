"""Servers that ask their callers for an API key."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from miles_core.serving import wire

if TYPE_CHECKING:
    from aiohttp import web

OPEN = ("/health",)
"""Paths that need no key."""


def asks_for(key: str) -> Any:
    """A middleware of aiohttp that turns callers away who do not show the key as a bearer token."""
    wanted = f"Bearer {key}".encode()

    async def check(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        from aiohttp import web

        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if request.path in OPEN or hmac.compare_digest(given, wanted):
            return await handler(request)
        body = wire.dumps({"error": {"message": "this address asks for an API key", "code": 401}})
        return web.Response(body=body, status=401, content_type="application/json", headers={"WWW-Authenticate": "Bearer"})

    check.__middleware_version__ = 1  # type: ignore[attr-defined]
    return check
