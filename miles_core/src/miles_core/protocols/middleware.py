"""A router middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aiohttp import web


class RouterMiddleware(Protocol):
    """Made by ``create(config)`` in the process that serves HTTP; the last one named is outermost."""

    async def __call__(
        self, request: web.Request, call_next: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer the request, usually by way of ``call_next``."""
        ...
