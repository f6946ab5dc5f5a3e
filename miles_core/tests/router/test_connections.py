"""Bytes: requests that come in pieces or together, answers of every framing, and connections that are used again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from miles_core.router.lines import BrokenAnswerError, Lines

OK = b"HTTP/1.1 200 OK\r\n"


class Scripted:
    """A server that answers the requests of each connection with the next texts of a script; None ends the connection."""

    def __init__(self, *connections: list[bytes | None]) -> None:
        self.connections = list(connections)
        self.requests: list[bytes] = []
        self.url = ""

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Scripted]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in self.connections.pop(0):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            if answer is None:
                break
            for at in range(0, len(answer), 7):
                writer.write(answer[at : at + 7])
                await writer.drain()
        writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 11\r\n\r\nhello world",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n",
        OK + b"Connection: close\r\n\r\nhello world",
        b"HTTP/1.0 200 OK\r\n\r\nhello world",
    ],
    ids=["length", "chunks", "close", "1.0"],
)
def test_every_framing_of_an_answer(answer: bytes) -> None:
    async def act() -> None:
        async with Scripted([answer], [answer]).serve() as server:
            lines = Lines(5.0, 5.0)
            for _ in range(2):
                assert await lines.post(server.url, "/generate", b"{}") == (200, b"hello world")
            lines.close()

    asyncio.run(act())


def test_a_connection_is_used_again_and_a_stale_one_is_no_failure() -> None:
    good = OK + b"Content-Length: 2\r\n\r\n{}"

    async def act() -> None:
        async with Scripted([good, good, None], [good], [None], []).serve() as server:
            lines = Lines(None, 5.0, "key")
            for _ in range(3):
                assert await lines.post(server.url, "/generate", b"{}") == (200, b"{}")
            assert len(server.requests) == 4, "the server ended the first connection at the third call"
            assert b"Authorization: Bearer key\r\n" in server.requests[0]
            with pytest.raises(BrokenAnswerError, match="closed"):
                await lines.post(server.url, "/generate", b"{}")
            lines.close()

    asyncio.run(act())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-x\r\n\r\n", "no HTTP"),
        (OK + b"Content-Length: 9\r\n\r\nhalf", "closed"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", "closed"),
    ],
)
def test_a_broken_answer(answer: bytes, why: str) -> None:
    async def act() -> None:
        async with Scripted([answer, None]).serve() as server:
            server.connections[0].pop()
            lines = Lines(5.0, 5.0)
            with pytest.raises(BrokenAnswerError, match=why):
                await lines.post(server.url, "/generate", b"{}")

    asyncio.run(act())


def request(number: int, end: bytes = b"") -> bytes:
    body = json.dumps({"input_ids": [number]}).encode()
    return b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n" % (len(body), end) + body


async def talk(url: str, data: bytes, answers: int, size: int) -> list[bytes]:
    """The bodies of what comes back for ``data``, which is sent in pieces of ``size``."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for at in range(0, len(data), size):
        writer.write(data[at : at + size])
        await writer.drain()
        await asyncio.sleep(0)
    found = []
    for _ in range(answers):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        found.append(await reader.readexactly(length))
    writer.close()
    return found


@pytest.mark.parametrize("size", [1, 50, 100_000])
def test_requests_in_pieces_and_together(play, size: int) -> None:
    """Three of the short way, one of the application's in between, one that closes."""
    status = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

    async def scene(stage) -> None:
        data = request(1) + request(2) + status + request(3) + request(4, b"Connection: close\r\n")
        answers = await talk(stage.url, data, 5, size)
        assert [json.loads(answers[i])["output_ids"] for i in (0, 1, 3, 4)] == [[1], [2], [3], [4]]
        assert json.loads(answers[2]) == {"status": "ok"}

    play(scene)


@pytest.mark.parametrize(
    "head",
    [
        b"Transfer-Encoding: chunked\r\nContent-Length: 18\r\n",
        b"Content-Length: 18\r\nContent-Length: 5\r\n",
        b"Content-Length: +18\r\n",
        b"Content-Length : 18\r\n",
    ],
)
def test_a_request_of_unclear_length_reaches_no_worker(play, head: bytes) -> None:
    async def scene(stage) -> None:
        host, port = stage.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\n" + head + b'\r\n{"input_ids": [1]}')
        assert b" 400 " in await reader.readline()
        writer.close()
        assert not any(worker.seen for worker in stage.workers)

    play(scene)
