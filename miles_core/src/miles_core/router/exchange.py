"""One request to the router, as middlewares see and change it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

Answered = Callable[[int, dict[str, Any]], None]


class Exchange:
    """What belongs to a request besides the request: :func:`exchange_of` finds it.

    A middleware that changes the body calls :meth:`replace`. One that wants to know the answers, streamed or not, appends to
    ``answered`` a function of ``(index, document)``: it is called once per prompt of the call, when its response is whole.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._body: bytes | None = None
        self.answered: list[Answered] = []

    async def body(self) -> bytes:
        """What goes to a worker."""
        if self._body is None:
            self._body = await self._request.read()
        return self._body

    async def document(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            ValueError: it is none.
        """
        data = await self.body()
        try:
            document = json.loads(data) if data.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise ValueError("the body must be a JSON object")
        return document

    def replace(self, document: dict[str, Any]) -> None:
        """Send this in place of what came."""
        self._body = json.dumps(document, separators=(",", ":")).encode()

    def answer(self, index: int, document: dict[str, Any]) -> None:
        """Tell all who asked."""
        for call in self.answered:
            call(index, document)


def exchange_of(request: web.Request) -> Exchange:
    """The exchange of a request to the router."""
    from miles_core.router.exchange_key import KEY

    found = request.get(KEY)
    if found is None:
        found = request[KEY] = Exchange(request)
    return found  # type: ignore[no-any-return]
