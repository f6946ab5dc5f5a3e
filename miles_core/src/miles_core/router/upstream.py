"""Calls to one worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from miles_core.router.lines import Lines
from miles_core.router.pool import Pool, Worker

if TYPE_CHECKING:
    import aiohttp

UNAVAILABLE = (502, 503, 504)
"""Answers of a server that cannot serve now, and has done nothing."""
JSON = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
READ_BUFFER = 1 << 20


class WorkerError(Exception):
    """A worker did not answer, or stopped in the midst of an answer: another one may."""

    def __init__(self, worker: Worker, why: str, *, silent: bool = False) -> None:
        super().__init__(f"{worker.url}: {why}")
        self.silent = silent


class AnswerError(Exception):
    """A worker answered with an error, which is the answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body

    def message(self) -> str:
        """What the worker said."""
        try:
            error = json.loads(self.body)["error"]
            return str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            return self.body.decode(errors="replace").strip()[:2000]


class Upstream:
    """HTTP to workers, which counts what is in flight, and failures.

    Args:
        timeout: seconds that a worker may be silent in a call; None for any time.
        api_key: bearer token that workers are shown; the session shows it by itself.
    """

    def __init__(self, pool: Pool, session: aiohttp.ClientSession, timeout: float | None, api_key: str | None = None) -> None:
        import aiohttp

        self._pool = pool
        self._session = session
        self._silence = f"silent for {timeout or 10.0:g} s"
        connect = 10.0 if timeout is None else min(10.0, timeout)
        self._lines = Lines(timeout, connect, api_key)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=timeout)
        self._calls: dict[Worker, set[asyncio.Timeout]] = {}

    @asynccontextmanager
    async def open(
        self, worker: Worker, method: str, path: str, body: bytes, headers: Mapping[str, str] = JSON, *, load: int = 1
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The worker's answer, of which nothing is read yet.

        Args:
            load: requests in the call.

        Raises:
            WorkerError: no connection, silence, a broken answer, or a server that cannot serve now.
        """
        import aiohttp

        worker.load += load
        calls = self._calls.setdefault(worker, set())
        scope = asyncio.timeout(None)
        calls.add(scope)
        try:
            # The path is the client's own spelling: it is not to be quoted anew.
            url = _url(worker.url, path)
            async with (
                scope,
                self._session.request(method, url, data=body or None, headers=headers, timeout=self._timeout) as response,
            ):
                if response.status in UNAVAILABLE:
                    why = AnswerError(response.status, await response.read()).message()
                    raise self._failed(worker, f"HTTP {response.status}: {why}")
                yield response
        except TimeoutError as error:
            gone = scope.expired()
            raise self._failed(worker, "it was taken away" if gone else self._silence, silent=not gone) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._failed(worker, str(error) or type(error).__name__) from error
        finally:
            worker.load -= load
            calls.discard(scope)

    async def exchange(self, worker: Worker, path: str, body: bytes, *, load: int = 1) -> bytes:
        """The worker's answer to a POST.

        Raises:
            WorkerError: as :meth:`open`.
            AnswerError: it is an error.
        """
        worker.load += load
        try:
            status, data = await self._lines.post(worker.url, path, body)
        except TimeoutError as error:
            raise self._failed(worker, self._silence, silent=True) from error
        except OSError as error:
            raise self._failed(worker, str(error) or type(error).__name__) from error
        finally:
            worker.load -= load
        if status in UNAVAILABLE:
            raise self._failed(worker, f"HTTP {status}: {AnswerError(status, data).message()}")
        if status != 200:
            raise AnswerError(status, data)
        self._pool.succeeded(worker)
        return data

    async def post(self, worker: Worker, path: str, document: Any, *, load: int = 1) -> Any:
        """The worker's answer as JSON.

        Raises:
            WorkerError: as :meth:`open`.
            AnswerError: it is an error.
        """
        return load_json(await self.exchange(worker, path, json.dumps(document, separators=(",", ":")).encode(), load=load))

    async def events(self, worker: Worker, path: str, document: Any, *, load: int) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a worker's stream, up to its ``[DONE]``.

        Raises:
            WorkerError: as :meth:`open`; or the stream ended without ``[DONE]``.
            AnswerError: the answer is an error, or an event is one.
        """
        body = json.dumps(document, separators=(",", ":")).encode()
        async with self.open(worker, "POST", path, body, load=load) as response:
            if response.status != 200:
                raise AnswerError(response.status, await response.read())
            rest = b""
            async for chunk in response.content.iter_any():
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    data = event.strip()
                    if data == b"data: [DONE]":
                        self._pool.succeeded(worker)
                        return
                    if not data.startswith(b"data:"):
                        continue
                    found = load_json(data[5:])
                    if not isinstance(found, dict):
                        raise AnswerError(502, b"a worker's event is not an object")
                    if "error" in found:
                        raise AnswerError(500, data[5:])
                    yield found
        raise self._failed(worker, "its stream ended before it was whole")

    def drop(self, worker: Worker) -> None:
        """A worker is gone: what it has not answered is for others, even where nothing says that its connections have ended."""
        self._lines.drop(worker.url)
        for scope in self._calls.pop(worker, ()):
            scope.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """End connections."""
        self._lines.close()

    def _failed(self, worker: Worker, why: str, *, silent: bool = False) -> WorkerError:
        self._pool.failed(worker, why)
        return WorkerError(worker, why, silent=silent)


def load_json(data: bytes) -> Any:
    """A worker's JSON.

    Raises:
        AnswerError: it is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnswerError(502, json.dumps({"error": {"message": f"a worker's answer is not JSON: {error}"}}).encode()) from error


def _url(base: str, path: str) -> Any:
    from yarl import URL

    return URL(base + path, encoded=True)
