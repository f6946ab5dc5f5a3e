"""Posting JSON until there is an answer: retries, back-off, a limit on requests in flight."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from miles_core.samples import Invalid, Timeout
from miles_rewards.remote.options import RequestOptions, shown

if TYPE_CHECKING:
    import aiohttp

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of which a further request may answer otherwise."""
MAX_WAIT = 30.0
"""Seconds between two requests at most, where the server asks for no more."""
MAX_ASKED = 120.0
"""Seconds that a server may ask to be left alone."""
MAX_ANSWER = 1 << 20
"""Bytes of an answer that are read."""
QUOTED = 200


class JsonClient:
    """Posts to one URL. For use in one event loop; :meth:`close` ends its connections.

    A request is repeated after a failed connection, a timeout, an answer that is cut off or is no JSON, and the statuses
    :data:`RETRIED`; the wait doubles from one second and has up to a second of jitter. ``Retry-After`` holds back all requests.
    Redirects are not followed: the answer would be that of another server, which might get the token.

    Args:
        url: used as it is.
        token: sent as ``Authorization: Bearer``; never part of a message.
        options: timeout, attempts, concurrency.
        base: seconds of the first wait.
    """

    def __init__(self, url: str, token: str | None, options: RequestOptions, *, base: float = 1.0) -> None:
        self._url = url
        self._name = shown(url)
        self._token = token
        self._timeout = options.rm_timeout
        self._attempts = options.rm_attempts
        self._concurrency = options.rm_concurrency
        self._slots = asyncio.Semaphore(options.rm_concurrency)
        self._base = base
        self._not_before = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: Mapping[str, Any]) -> Any:
        """The JSON of the answer, or the :class:`Invalid` or :class:`Timeout` that it comes to. Does not raise."""
        try:
            data = json.dumps(body).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            return Invalid(f"the sample cannot be sent as JSON: {error}")
        failure: Invalid | Timeout = Invalid("not asked")
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(min(self._base * 2.0 ** (attempt - 1), MAX_WAIT) + random.uniform(0, self._base))
            async with self._slots:
                while (held := self._not_before - time.monotonic()) > 0:
                    await asyncio.sleep(held)
                answer = await self._once(data)
            if not isinstance(answer, _Again):
                return answer
            failure = answer.failure
        said = f"{failure.detail} (in the last of {self._attempts} attempts)" if self._attempts > 1 else failure.detail
        return Timeout(failure.seconds, said) if isinstance(failure, Timeout) else Invalid(said)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _once(self, data: bytes) -> Any:
        import aiohttp

        try:
            limit = aiohttp.ClientTimeout(total=self._timeout)
            async with self._open().post(self._url, data=data, timeout=limit, allow_redirects=False) as response:
                text = await response.content.read(MAX_ANSWER + 1)
                while len(text) <= MAX_ANSWER and (more := await response.content.read(MAX_ANSWER + 1 - len(text))):
                    text += more
                return self._read(response.status, response.headers, text)
        except TimeoutError:
            return _Again(Timeout(self._timeout, f"{self._name} did not answer"))
        except (aiohttp.ClientError, OSError) as error:
            return _Again(Invalid(self._clean(f"{self._name} cannot be reached: {type(error).__name__}: {error}")))
        except ValueError as error:
            return Invalid(self._clean(f"{self._name} cannot be asked: {error}"))

    def _read(self, status: int, headers: Mapping[str, str], text: bytes) -> Any:
        if len(text) > MAX_ANSWER:
            return Invalid(f"{self._name} answered with more than {MAX_ANSWER} bytes")
        if not 200 <= status < 300:
            failure = Invalid(self._clean(f"{self._name} answered HTTP {status}{_quote(text)}"))
            if status not in RETRIED:
                return failure
            self._not_before = max(self._not_before, time.monotonic() + _asked(headers.get("Retry-After", "")))
            return _Again(failure)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return _Again(Invalid(self._clean(f"{self._name} answered with no JSON{_quote(text)}")))

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self._token is not None:
                headers["Authorization"] = f"Bearer {self._token}"
            connector = aiohttp.TCPConnector(limit=self._concurrency)
            self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self._session

    def _clean(self, text: str) -> str:
        return " ".join((text.replace(self._token, "***") if self._token else text).split())


class _Again:
    """A failure that a further request may not have."""

    def __init__(self, failure: Invalid | Timeout) -> None:
        self.failure = failure


def _quote(text: bytes) -> str:
    said = text[: 4 * QUOTED].decode("utf-8", "replace").strip()
    return f": {said[:QUOTED]}" if said else ""


def _asked(header: str) -> float:
    """The seconds that a ``Retry-After`` asks for: a number, or a date."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(header)
            seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), MAX_ASKED) if seconds == seconds else 0.0
