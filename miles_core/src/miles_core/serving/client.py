"""A client of one or more engines that speak SGLang's HTTP."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from miles_core.errors import RunError
from miles_core.samples import FinishReason, GenerateRequest, GenerateResult
from miles_core.serving import wire

if TYPE_CHECKING:
    import aiohttp

OWNER = "miles-core"
ABORTED = 499
"""Status of SGLang's answer to a request that was aborted before it had a token."""
MOST_CALLS = 512
"""Calls in flight per engine that takes one request a call."""
RETRY_SECONDS = 60.0
"""Longest pause before a call that was turned away is repeated, whatever the server asks for."""


def assign(requests: Sequence[GenerateRequest], engines: int) -> list[list[GenerateRequest]]:
    """Spread requests over engines; a pure function of their order.

    Requests with the same prompt go to one engine, which then computes the prompt once; each such group goes to the engine
    with the fewest requests so far, the first of equals.
    """
    groups: dict[tuple[int, ...], list[GenerateRequest]] = {}
    for request in requests:
        groups.setdefault(tuple(request.input_ids), []).append(request)
    parts: list[list[GenerateRequest]] = [[] for _ in range(engines)]
    for group in groups.values():
        min(parts, key=len).extend(group)
    return parts


class EngineClient:
    """Generates on engines behind URLs. For use in one event loop; :meth:`close` ends its connections.

    Args:
        urls: base URLs of the engines.
        batch_stream: whether one HTTP call may take many requests and answer each as it ends; otherwise each request is a call.
        timeout: seconds that an engine may be silent before the run fails.
        max_connections: most calls in flight per URL, where each request is a call.
        abort_urls: engines behind a router that does not pass aborts on; None aborts at ``urls``.
        api_key: bearer token to show.

    A call that is turned away for now (503 with ``Retry-After``) is repeated when that has passed, for up to ``timeout`` seconds.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        batch_stream: bool,
        timeout: float,
        max_connections: int = MOST_CALLS,
        abort_urls: Sequence[str] | None = None,
        api_key: str | None = None,
    ) -> None:
        if not urls:
            raise ValueError("an engine client needs at least one URL")
        self.urls = tuple(url.rstrip("/") for url in urls)
        self.batch_stream = batch_stream
        self.timeout = timeout
        self.max_connections = max_connections
        self.abort_urls = self.urls if abort_urls is None else tuple(url.rstrip("/") for url in abort_urls)
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._session: aiohttp.ClientSession | None = None

    async def generate(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[GenerateResult, None]:
        """Results as they end, in any order. Closing the generator early drops the calls, which aborts their requests.

        Raises:
            RunError: ``M441`` no connection, ``M442`` silence for ``timeout`` seconds, ``M443`` an error from the engine,
                ``M444`` an answer that cannot be read or is missing.
        """
        queue: asyncio.Queue[Sequence[GenerateResult] | BaseException | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._part(url, part, queue))
            for url, part in zip(self.urls, assign(requests, len(self.urls)), strict=True)
            if part
        ]
        running = len(tasks)
        try:
            while running:
                item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    for result in item:
                        yield result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def abort_all(self) -> None:
        """Make every engine end its requests with what they have."""
        await asyncio.gather(*(self._post(url, "/abort_request", {"abort_all": True}) for url in self.abort_urls))

    async def health(self, timeout: float = 5.0) -> None:
        """Return when every engine answers within ``timeout`` seconds; raise ``RunError`` otherwise."""
        import aiohttp

        async def check(url: str) -> None:
            limit = aiohttp.ClientTimeout(total=timeout)
            try:
                async with self._open().get(f"{url}/health", timeout=limit) as response:
                    if response.status != 200:
                        raise _engine_error(url, response.status, await response.text())
            except (aiohttp.ClientError, OSError) as error:
                raise _failure(url, error, timeout) from error

        await asyncio.gather(*(check(url) for url in self.urls))

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _part(self, url: str, part: Sequence[GenerateRequest], queue: asyncio.Queue[Any]) -> None:
        try:
            if self.batch_stream:
                await self._stream(url, part, queue)
            else:
                await self._singles(url, part, queue)
        except ExceptionGroup as group:
            queue.put_nowait(group.exceptions[0])
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    async def _singles(self, url: str, part: Sequence[GenerateRequest], queue: asyncio.Queue[Any]) -> None:
        limit = asyncio.Semaphore(self.max_connections)

        async def one(request: GenerateRequest) -> None:
            async with limit:
                body = wire.encode_call([request], batched=False, stream=False)
                status, data = await self._exchange(url, "/generate", body)
            if status == ABORTED:
                result = GenerateResult(request.rid, (), (), FinishReason.ABORT, 0, "", len(request.input_ids))
            elif status != 200:
                raise _engine_error(url, status, data.decode(errors="replace"))
            else:
                with _collector_paused():
                    result = _result(url, _load(url, data), request.rid, final=True)
            queue.put_nowait([result])

        async with asyncio.TaskGroup() as group:
            for request in part:
                group.create_task(one(request))

    async def _stream(self, url: str, part: Sequence[GenerateRequest], queue: asyncio.Queue[Any]) -> None:
        import aiohttp

        missing = {i: request.rid for i, request in enumerate(part)}
        body = wire.encode_call(part, batched=True, stream=True)
        try:
            async with self._posted(url, "/generate", body) as response:
                if response.status != 200:
                    raise _engine_error(url, response.status, await response.text())
                rest = b""
                async for chunk in response.content.iter_any():
                    *events, rest = (rest + chunk).split(b"\n\n")
                    found = []
                    for event in events:
                        data = event.strip()
                        if not data.startswith(b"data:") or data == b"data: [DONE]":
                            continue
                        with _collector_paused():
                            document = _load(url, data[5:])
                            index = document.get("index", 0)
                            result = _result(url, document, missing.get(index, ""), final=False)
                        if result is not None and missing.pop(index, None) is not None:
                            found.append(result)
                    if found:
                        queue.put_nowait(found)
        except (aiohttp.ClientError, OSError) as error:
            raise _failure(url, error, self.timeout) from error
        if missing:
            what = f"engine {url} ended its answer with {len(part) - len(missing)} of {len(part)} responses"
            raise RunError("M444", what, owner=OWNER, fix="see the engine's log", url=url)

    async def _post(self, url: str, path: str, document: dict[str, Any]) -> bytes:
        status, data = await self._exchange(url, path, wire.dumps(document))
        if status != 200:
            raise _engine_error(url, status, data.decode(errors="replace"))
        return data

    async def _exchange(self, url: str, path: str, body: bytes) -> tuple[int, bytes]:
        import aiohttp

        try:
            async with self._posted(url, path, body) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise _failure(url, error, self.timeout) from error

    @asynccontextmanager
    async def _posted(self, url: str, path: str, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a POST, once it is not that the server is busy."""
        deadline = asyncio.get_running_loop().time() + self.timeout
        while True:
            async with self._open().post(f"{url}{path}", data=body, headers=_JSON) as response:
                pause = _pause(response)
                if pause is None or asyncio.get_running_loop().time() + pause > deadline:
                    yield response
                    return
                await response.read()
            # Callers that were turned away together are not to come back together.
            await asyncio.sleep(pause * random.uniform(1.0, 1.5))

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            # Silence is what counts, not the length of a call: a batch streams for as long as its longest response.
            limit = aiohttp.ClientTimeout(total=None, sock_connect=min(self.timeout, 30.0), sock_read=self.timeout)
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(timeout=limit, connector=connector, read_bufsize=1 << 20, headers=self._headers)
        return self._session


_JSON = {"Content-Type": "application/json"}


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without garbage collections: the thousands of small lists of an answer start them, and each one visits every token so far."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _pause(response: aiohttp.ClientResponse) -> float | None:
    """Seconds after which a call that was turned away may be repeated; None when it was not."""
    after = response.headers.get("Retry-After", "") if response.status == 503 else ""
    return min(float(after), RETRY_SECONDS) if after.isdecimal() else None


def _load(url: str, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise RunError("M444", f"engine {url} sent an answer that is not JSON", owner=OWNER, why=str(error), url=url) from error
    if not isinstance(document, dict):
        raise RunError("M444", f"engine {url} sent an answer that is not an object", owner=OWNER, url=url)
    return document


def _result(url: str, document: dict[str, Any], rid: str, final: bool) -> Any:
    if "error" in document:
        raise _engine_error(url, 200, json.dumps(document))
    try:
        result = wire.decode_result(document, rid)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RunError("M444", f"engine {url} sent an answer that cannot be read", owner=OWNER, why=str(error), url=url) from error
    if result is None and final:
        raise RunError("M444", f"engine {url} answered {rid} without a finish reason", owner=OWNER, url=url)
    return result


def _engine_error(url: str, status: int, text: str) -> RunError:
    try:
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        text = text.strip()
    what = f"engine {url} refused the call" if 400 <= status < 500 else f"engine {url} failed"
    return RunError(
        "M443", what, owner=OWNER, why=f"HTTP {status}: {text[:2000]}", fix="see the engine's log", url=url, status=status
    )


def _failure(url: str, error: BaseException, timeout: float) -> RunError:
    if isinstance(error, TimeoutError):
        what = f"engine {url} was silent for {timeout:g} s"
        fix = "see the engine's log; raise --rollout-request-timeout when responses take that long"
        return RunError("M442", what, owner=OWNER, fix=fix, url=url)
    why = str(error) or type(error).__name__
    return RunError("M441", f"no connection to engine {url}", owner=OWNER, why=why, fix="see the engine's log", url=url)
