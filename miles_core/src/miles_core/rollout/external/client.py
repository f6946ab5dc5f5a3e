"""The run's side of the buffer's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from miles_core.config import ExternalOptions
from miles_core.errors import RunError, UsageError
from miles_core.rollout.external.trajectory import load_object
from miles_core.serving import wire

if TYPE_CHECKING:
    import aiohttp

LONGEST_PAUSE = 30.0


class _AgainError(Exception):
    """A call that brought nothing, and may another time."""


class _WrongError(Exception):
    """An answer that will not get better."""


class BufferClient:
    """Calls the buffer. For use in one event loop; :meth:`close` ends its connections.

    Args:
        timeout: seconds that one call may take.
        pause: seconds before the first retry; each further pause is twice as long.

    Attributes:
        failures: calls that failed and were repeated.
    """

    def __init__(self, options: ExternalOptions, *, timeout: float = 120.0, pause: float = 0.5) -> None:
        assert options.rollout_buffer_url is not None
        self.url = options.rollout_buffer_url.rstrip("/")
        self.failures = 0
        self._retries = options.fetch_trajectory_retry_times
        self._timeout = timeout
        self._pause = pause
        self._headers = {"Content-Type": "application/json"}
        if options.rollout_buffer_token:
            self._headers["Authorization"] = f"Bearer {options.rollout_buffer_token}"
        self._session: aiohttp.ClientSession | None = None

    async def check(self) -> None:
        """Find out at the start of a run whether the buffer is there.

        Raises:
            UsageError: it does not answer, or is something else (M496).
        """
        try:
            for path in ("/health", "/rollout"):
                answer = await self._call("GET", path, None)
                if answer.get("success") is not True:
                    raise _WrongError(f"GET {path} says no success: {answer.get('message', '')!s:.200}")
        except (_AgainError, _WrongError) as error:
            await self.close()
            fix = "start it with python -m miles_core.rollout.external.server, or correct --rollout-buffer-url"
            raise UsageError("M496", "it cannot be used", owner=self._owner, why=str(error), fix=fix) from None

    async def start(self, payload: dict[str, Any]) -> None:
        """Start the rollout: agents find ``payload`` at the buffer.

        Raises:
            RunError: it failed for good (M497, M498).
        """
        await self._patiently("/start_rollout", payload)

    async def fetch(
        self, run_id: str, count: int, held: Sequence[str], acknowledged: Sequence[str]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Trajectories of at most ``count`` whole groups, and facts about what is left.

        Args:
            held: groups that the run has and may lose in a crash.
            acknowledged: groups that it will not need again.

        Raises:
            RunError: it failed for good (M497), or the answer is no such thing (M498).
        """
        body = {"run_id": run_id, "max_groups": count, "held": list(held), "acknowledged": list(acknowledged), "collecting": True}
        answer = await self._patiently("/get_rollout_data", body)
        data = answer.get("data")
        items = data.get("data") if isinstance(data, dict) else None
        meta = data.get("meta_info") if isinstance(data, dict) else None
        if not isinstance(items, list):
            raise self._unusable("POST /get_rollout_data: the answer has no data.data, a list of trajectories")
        return items, meta if isinstance(meta, dict) else {}

    async def rest(self, run_id: str, held: Sequence[str]) -> None:
        """Tell agents that nothing is collected for a while. They may miss it, so one try is enough."""
        try:
            await self._call(
                "POST", "/get_rollout_data", {"run_id": run_id, "max_groups": 0, "held": list(held), "collecting": False}
            )
        except (_AgainError, _WrongError):
            self.failures += 1

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _patiently(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        attempt = 0
        while True:
            try:
                return await self._call("POST", path, body)
            except _WrongError as error:
                raise self._unusable(f"POST {path}: {error}") from None
            except _AgainError as error:
                self.failures += 1
                if 0 <= self._retries <= attempt:
                    raise RunError(
                        "M497",
                        f"POST {path} failed {attempt + 1} times in a row",
                        owner=self._owner,
                        why=str(error),
                        fix="see its log and start it again, or raise --fetch-trajectory-retry-times; -1 never gives up",
                    ) from None
            await asyncio.sleep(min(self._pause * 2 ** min(attempt, 10), LONGEST_PAUSE))
            attempt += 1

    async def _call(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        import aiohttp

        data = None if body is None else wire.dumps(body)
        try:
            async with self._open().request(method, f"{self.url}{path}", data=data, headers=self._headers) as response:
                found = await response.read()
        except TimeoutError:
            raise _AgainError(f"it was silent for {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _AgainError(str(error) or type(error).__name__) from None
        if response.status != 200:
            text = f"HTTP {response.status}: {' '.join(found.decode(errors='replace').split())[:300]}"
            again = response.status >= 500 or response.status in (408, 429)
            raise _AgainError(text) if again else _WrongError(text)
        try:
            return load_object(found)
        except ValueError as error:
            raise _WrongError(f"the answer cannot be read: {error}") from None

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout))
        return self._session

    def _unusable(self, why: str) -> RunError:
        fix = "see the buffer's log; one buffer serves one run at a time, with the same MILES_ROLLOUT_BUFFER_TOKEN"
        return RunError("M498", "its answer cannot be used", owner=self._owner, why=why, fix=fix)

    @property
    def _owner(self) -> str:
        return f"rollout buffer {self.url}"
