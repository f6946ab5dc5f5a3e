"""Probes of the workers: into quarantine and back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

from miles_core.router.pool import Pool, Worker, as_version

if TYPE_CHECKING:
    import aiohttp

INTERVAL = 5.0
"""Seconds between two probes of a worker."""
TIMEOUT = 10.0
"""Seconds that a worker may take to answer one."""
PAUSE = 0.2
"""Seconds from a failure to the probe that it brings about."""


class HealthMonitor:
    """Probes every worker's ``/health``, over connections of its own: full ones of the router say nothing about a worker.

    A worker in quarantine returns when it answers and serves the weights that the others serve (``/model_info``), or, where there
    are no others, none older than answers have had. A worker that was started again has to get current weights first.
    """

    def __init__(self, pool: Pool, session: aiohttp.ClientSession, interval: float = INTERVAL, timeout: float = TIMEOUT) -> None:
        self._pool = pool
        self._session = session
        self._interval = interval
        self._timeout = timeout

    async def run(self) -> None:
        """Probe until cancelled; at once after a failure."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pool.suspect.wait(), self._interval)
                await asyncio.sleep(min(PAUSE, self._interval))
            self._pool.suspect.clear()
            await self.sweep()

    async def sweep(self) -> None:
        """Probe all of them once."""
        await asyncio.gather(*(self._probe(worker) for worker in list(self._pool.workers.values())))

    async def _probe(self, worker: Worker) -> None:
        import aiohttp

        try:
            status, _ = await self._get(f"{worker.url}/health")
            why = "" if status == 200 else f"GET /health: HTTP {status}"
            if not why and worker.quarantined:
                why = await self._stale(worker)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = f"GET /health: {error or type(error).__name__}"
        if not why:
            self._pool.succeeded(worker)
        elif worker.quarantined:
            worker.reason = why
        else:
            self._pool.failed(worker, why, probe=False)

    async def _stale(self, worker: Worker) -> str:
        """Why the weights of a worker are not those that are served; empty when they are."""
        mine, *others = await asyncio.gather(*(self._version(each) for each in [worker, *self._pool.live]))
        known = [version for version in others if version is not None]
        current = max(known) if known else self._pool.version
        if current is None or (mine is not None and mine >= current):
            return ""
        return f"it serves weights of version {'unknown' if mine is None else mine}, and {current} is current"

    async def _version(self, worker: Worker) -> int | None:
        import aiohttp

        try:
            status, data = await self._get(f"{worker.url}/model_info")
            return as_version(json.loads(data).get("weight_version")) if status == 200 else None
        except (aiohttp.ClientError, OSError, ValueError, AttributeError):
            return None

    async def _get(self, url: str) -> tuple[int, bytes]:
        import aiohttp

        async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=self._timeout)) as response:
            return response.status, await response.read()
