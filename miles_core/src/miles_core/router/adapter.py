"""A function named by ``--miles-router-middleware-paths``, as a middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from miles_core.errors import MilesError, RunError
from miles_core.options import Config
from miles_core.plugins.causes import describe

if TYPE_CHECKING:
    from aiohttp import web


class FunctionMiddleware:
    """Implements :class:`miles_core.protocols.RouterMiddleware` by a function."""

    def __init__(self, function: Callable[..., Any], call: tuple[str, ...], name: str, config: Config) -> None:
        self._function = function
        self._name = name

    async def __call__(
        self, request: web.Request, call_next: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer the request.

        Raises:
            RunError: M446, the function failed, or answered with something that is no response.
        """
        from aiohttp import web

        from miles_core.router.gate import BusyError
        from miles_core.router.upstream import AnswerError, WorkerError

        try:
            answer = await self._function(request, call_next)
        except (web.HTTPException, MilesError, AnswerError, BusyError, WorkerError, ValueError):
            # What the router answers with by itself goes through.
            raise
        except Exception as error:
            raise self._error(f"it failed with {describe(error)}") from error
        if not isinstance(answer, web.StreamResponse):
            raise self._error(f"it returned {type(answer).__name__}")
        return answer

    def _error(self, why: str) -> RunError:
        fix = "let it return what call_next returns, or an aiohttp response"
        return RunError("M446", f"the middleware {self._name!r} failed", owner="miles-core", why=why, fix=fix)
