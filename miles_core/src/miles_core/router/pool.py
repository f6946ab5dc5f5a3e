"""The workers behind the router: who there is, who may take a request, and who is in quarantine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from miles_core.router.policy import LeastLoaded, Policy

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Worker:
    """One server.

    Attributes:
        load: requests in flight; each of a batch counts.
        failures: in a row, of probes and of calls; an answer sets it back.
        quarantined: whether it takes nothing until a probe has found it well.
        reason: of its last failure.
        served: requests that it has answered.
    """

    url: str
    number: int
    load: int = 0
    failures: int = 0
    quarantined: bool = False
    reason: str = ""
    served: int = 0

    def facts(self) -> dict[str, Any]:
        """For ``GET /workers``."""
        return {
            "id": str(self.number),
            "url": self.url,
            "is_healthy": not self.quarantined,
            "load": self.load,
            "failures": self.failures,
            "served": self.served,
            "reason": self.reason,
        }


@dataclass
class Pool:
    """Workers by URL.

    Args:
        threshold: failures in a row that put a worker in quarantine.
        policy: chooses among those that may take a request.

    Attributes:
        version: newest weight version that is known to be served; None while none is.
        suspect: set by a failure, so that probes begin at once.
    """

    threshold: int = 3
    policy: Policy = field(default_factory=LeastLoaded)
    workers: dict[str, Worker] = field(default_factory=dict)
    version: int | None = None
    suspect: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _count: int = 0

    @property
    def live(self) -> list[Worker]:
        """Those that are not in quarantine."""
        return [worker for worker in self.workers.values() if not worker.quarantined]

    def add(self, url: str) -> Worker:
        """Register a worker; one that is registered already leaves quarantine.

        Raises:
            ValueError: this is no address of a server.
        """
        url = checked_url(url)
        worker = self.workers.get(url)
        if worker is None:
            worker = self.workers[url] = Worker(url, self._count)
            self._count += 1
        self.succeeded(worker)
        self._changed.set()
        return worker

    def remove(self, url: str) -> Worker | None:
        """Give a worker no further request; what it is answering goes on. Returns it, None when it was not there."""
        return self.workers.pop(url.rstrip("/"), None)

    def choose(self, tokens: Sequence[int] | bytes = (), tried: Collection[Worker] = ()) -> Worker | None:
        """A worker for a prompt; None when there is none, or only such as were tried.

        One whose last call failed is a choice only where there is no other: a dead one, whose load is always least, would draw
        every request.
        """
        free = [worker for worker in self.live if worker not in tried]
        well = [worker for worker in free if not worker.failures] or free
        return self.policy.choose(well, tokens) if well else None

    async def wait(self, seconds: float, over: Callable[[], bool] = lambda: False) -> bool:
        """Wait until there is a worker that may take requests, or nobody needs it any more; returns whether either is so.

        Args:
            over: asked again after each :meth:`stir`.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while not self.live and not over():
            self._changed.clear()
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return False
        return True

    def stir(self) -> None:
        """Have those that wait for a worker look whether they still have to."""
        self._changed.set()

    def failed(self, worker: Worker, reason: str, *, probe: bool = True) -> None:
        """Count a failure; ``probe`` says whether it shall bring one about."""
        worker.failures += 1
        worker.reason = reason
        if worker.failures >= self.threshold and not worker.quarantined:
            worker.quarantined = True
            log.warning("worker %s is in quarantine after %d failures: %s", worker.url, worker.failures, reason)
        if probe:
            self.suspect.set()

    def succeeded(self, worker: Worker) -> None:
        """It answers: it may take requests."""
        if worker.quarantined:
            log.warning("worker %s is back", worker.url)
        worker.failures, worker.quarantined, worker.reason = 0, False, ""
        self._changed.set()

    def saw_version(self, version: object) -> None:
        """This weight version is served."""
        number = as_version(version)
        if number is not None and (self.version is None or number > self.version):
            self.version = number
            self.policy.forget()


def as_version(version: object) -> int | None:
    """A weight version as a number; None for a server's word for weights that nobody has published to."""
    text = str(version)
    return int(text) if text.isdigit() else None


def checked_url(url: object) -> str:
    """The address of a server, without a slash at its end.

    Raises:
        ValueError: it is none.
    """
    if isinstance(url, str):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment and not parts.username:
            _ = parts.port
            return url.rstrip("/")
    raise ValueError(f"{url!r} is no http:// or https:// address of a worker")
