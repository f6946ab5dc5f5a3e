"""Connections to workers for calls whose answer is passed on whole: HTTP/1.1 with as little work for each call as there can be."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?=\r\n)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*close", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/1\.([01]) (\d{3})")
MOST_HEAD = 65_536


class BrokenAnswerError(OSError):
    """The connection ended before an answer was whole; ``begun`` says whether any of it had come."""

    def __init__(self, why: str, *, begun: bool) -> None:
        super().__init__(why)
        self.begun = begun


class Lines:
    """Calls to servers over connections that are used again.

    Args:
        timeout: seconds that a server may be silent in a call; None for any time.
        connect: seconds that a connection may take.
        api_key: bearer token to show.
    """

    def __init__(self, timeout: float | None, connect: float, api_key: str | None = None) -> None:
        self._timeout = timeout
        self._connect = connect
        self._key = f"Authorization: Bearer {api_key}\r\n" if api_key is not None else ""
        self._idle: dict[str, list[_Line]] = {}
        self._heads: dict[tuple[str, str], bytes] = {}
        self._open: dict[str, set[_Line]] = {}

    async def post(self, url: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a POST of JSON.

        Raises:
            TimeoutError: no connection, or silence.
            OSError: no connection, or it broke; or what came is no HTTP.
        """
        head = self._heads.get((url, path)) or self._head(url, path)
        idle = self._idle.setdefault(url, [])
        while True:
            used = bool(idle)
            line = idle.pop() if used else await self._new(url, idle)
            try:
                return await line.call(head + b"%d\r\n\r\n" % len(body) + body, self._timeout)
            except BrokenAnswerError as error:
                # A server may close a connection that has long been idle in the moment in which it is used again.
                if not used or error.begun:
                    raise

    def drop(self, url: str) -> None:
        """End every connection to a server that is gone, and the calls on them."""
        for line in list(self._open.pop(url, ())):
            line.give_up()

    def close(self) -> None:
        """End every connection."""
        for line in [line for lines in self._open.values() for line in lines]:
            line.abort()

    def _head(self, url: str, path: str) -> bytes:
        parts = urlsplit(url)
        lines = f"POST {parts.path}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self._heads[url, path] = f"{lines}{self._key}Content-Length: ".encode("latin-1")
        return self._heads[url, path]

    async def _new(self, url: str, idle: list[_Line]) -> _Line:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        loop = asyncio.get_running_loop()
        everyone = self._open.setdefault(url, set())
        async with asyncio.timeout(self._connect):
            _, line = await loop.create_connection(lambda: _Line(idle, everyone), host, port, ssl=secure or None)
        return line


class _Line(asyncio.Protocol):
    """One connection, and at most one call on it."""

    def __init__(self, idle: list[_Line], everyone: set[_Line]) -> None:
        self._idle = idle
        self._everyone = everyone
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self._begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._everyone.add(self)

    async def call(self, message: bytes, timeout: float | None) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        if self._transport.is_closing():
            raise BrokenAnswerError("the connection was closed", begun=False)
        self._begin()
        waiter: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._waiter = waiter
        self._transport.write(message)
        timer = None
        if timeout is not None:
            self._heard = self._loop.time()
            timer = self._timer = self._loop.call_later(timeout, self._look, timeout)
        try:
            return await waiter
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            if timer is not None:
                self._timer.cancel()

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()

    def give_up(self) -> None:
        """End the connection, and the call on it."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(OSError("the server was taken away"))
        self.abort()

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.abort()  # nobody asked
            return
        self._heard = self._loop.time()
        self._parts.append(data)
        self._size += len(data)
        if self._needed is None and not self._read_head():
            return
        if self._needed is not None and self._needed >= 0:
            if self._size >= self._needed:
                self._end(b"".join(self._parts)[self._start : self._needed])
        elif self._needed == _CHUNKS and (data.endswith(b"\r\n\r\n")):
            body = _unchunked(b"".join(self._parts)[self._start :])
            if body is not None:
                self._end(body)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._everyone.discard(self)
        if self in self._idle:
            self._idle.remove(self)
        if self._waiter is None or self._waiter.done():
            return
        if self._needed == _TO_THE_END and error is None:
            self._closes = True
            self._end(b"".join(self._parts)[self._start :])
            return
        why = str(error) if error is not None else "the server closed the connection"
        self._waiter.set_exception(BrokenAnswerError(why, begun=bool(self._parts)))

    def _begin(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._start = 0
        self._needed: int | None = None
        self._status = 0
        self._closes = False

    def _read_head(self) -> bool:
        """Look for the end of the head; returns whether it is there."""
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        data = self._parts[0]
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MOST_HEAD:
                self._fail("its head has no end")
            return False
        head = data[: end + 2]
        status = _STATUS.match(head)
        if status is None:
            self._fail("what it sent is no HTTP")
            return False
        self._status, self._start = int(status[2]), end + 4
        self._closes = _CLOSE.search(head) is not None or status[1] == b"0"
        if _CHUNKED.search(head):
            self._needed = _CHUNKS
        elif found := _LENGTH.search(head):
            self._needed = self._start + int(found[1])
        else:
            self._needed = _TO_THE_END
        return True

    def _end(self, body: bytes) -> None:
        assert self._waiter is not None
        waiter, self._waiter = self._waiter, None
        self._parts = []
        if self._closes:
            self._transport.close()
        else:
            self._idle.append(self)
        waiter.set_result((self._status, body))

    def _fail(self, why: str) -> None:
        assert self._waiter is not None
        self._waiter.set_exception(BrokenAnswerError(why, begun=True))
        self.abort()

    def _look(self, timeout: float) -> None:
        """End a call whose server has been silent for too long."""
        left = self._heard + timeout - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look, timeout)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())
            self.abort()


_CHUNKS = -1
_TO_THE_END = -2


def _unchunked(data: bytes) -> bytes | None:
    """The body that chunks make up; None while the last one is missing."""
    parts: list[bytes] = []
    at = 0
    while (line := data.find(b"\r\n", at)) >= 0:
        try:
            size = int(data[at:line].split(b";")[0], 16)
        except ValueError:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(data[line + 2 : line + 2 + size])
        at = line + 2 + size + 2
    return None
