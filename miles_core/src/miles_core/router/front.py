"""The short way through the router, for what makes up its load: calls of one prompt whose answer comes in one piece.

Such a call is passed on as it is, and so is its answer, unless a middleware wants to see it. Any other request hands the connection
over to the application, for good.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import socket
from collections.abc import Awaitable, Callable, MutableSet

START = b"POST /generate HTTP/1.1\r\n"
MOST_BODY = 1 << 20
"""Bytes of a body that may go the short way at the most."""
MOST_HEAD = 8190
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?=\r\n)", re.IGNORECASE)
_UNUSUAL = re.compile(
    rb"\r\n(?:[ \t]|(?:transfer-encoding|expect|upgrade|content-encoding):|connection:(?![ \t]*keep-alive[ \t]*\r\n))",
    re.IGNORECASE,
)
_KEY = re.compile(rb"\r\nauthorization:[ \t]*([^\r\n]*)\r\n", re.IGNORECASE)
_PROMPT = re.compile(rb'"input_ids":\s?\[([\d, ]+)\]')

Quick = Callable[[bytes, bytes], Awaitable[bytes]]
"""The HTTP answer to a body, and its prompt as text."""


class Front(asyncio.Protocol):
    """One connection of a caller.

    Args:
        quick: answers calls that go the short way.
        handler: the application's protocol, which takes the connection over.
        api_key: that callers have to show.
        everyone: where open connections are kept until they are handed over.
        most: bytes of a body that may go the short way.
    """

    def __init__(
        self,
        quick: Quick,
        handler: asyncio.Protocol,
        api_key: str | None,
        everyone: MutableSet[Front],
        most: int = MOST_BODY,
    ) -> None:
        self._most = min(most, MOST_BODY)
        self._quick = quick
        self._handler = handler
        self._key = f"Bearer {api_key}".encode() if api_key is not None else None
        self._everyone = everyone
        self._data = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._everyone.add(self)
        # A caller whose machine is gone says no word of it.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if self._task is None:
            self._look()
        elif len(self._data) > MOST_BODY:
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._everyone.discard(self)
        if self._task is not None:
            # What nobody waits for any more is not to be made.
            self._task.cancel()

    def close(self) -> None:
        """End the connection."""
        self._transport.abort()

    def _look(self) -> None:
        """Answer the next request, once it is whole."""
        data = self._data
        if not data:
            return
        if not data.startswith(START[: len(data)]):
            self._hand_over()
            return
        head = data.find(b"\r\n\r\n")
        if head < 0:
            if len(data) > MOST_HEAD:
                self._hand_over()
            return
        length = self._length(data[: head + 2])
        if length is None:
            self._hand_over()
            return
        whole = head + 4 + length
        if len(data) < whole:
            return
        body = data[head + 4 : whole]
        prompt = _PROMPT.search(body)
        if prompt is None or b'"stream"' in body:
            self._hand_over()
            return
        self._data = data[whole:]
        self._task = asyncio.create_task(self._answer(body, prompt[1]))

    def _length(self, head: bytes) -> int | None:
        """Bytes of the body; None for a request that does not go the short way."""
        found = _LENGTH.findall(head)
        if len(found) != 1 or len(found[0]) > 7 or _UNUSUAL.search(head) is not None:
            return None
        if self._key is not None:
            key = _KEY.search(head)
            if key is None or not hmac.compare_digest(key[1].strip(), self._key):
                return None
        length = int(found[0])
        return length if length <= self._most else None

    async def _answer(self, body: bytes, prompt: bytes) -> None:
        answer = await self._quick(body, prompt)
        self._transport.write(answer)
        self._task = None
        if self._data:
            self._transport.resume_reading()
            self._look()

    def _hand_over(self) -> None:
        self._everyone.discard(self)
        self._handler.connection_made(self._transport)
        self._transport.set_protocol(self._handler)
        data, self._data = self._data, b""
        self._handler.data_received(data)
