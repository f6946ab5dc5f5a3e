"""Core's router as a run starts it: :class:`miles_core.protocols.Router` around :func:`router_app`, served from a thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from miles_core.config import DataOptions, FaultToleranceOptions, RouterOptions
from miles_core.config.fault_tolerance import RESTART_SECONDS
from miles_core.errors import RunError
from miles_core.options import Config
from miles_core.protocols import RouterLaunch
from miles_core.router.app import RouterServer, RouterSettings
from miles_core.router.generate import ATTEMPTS, PATIENCE
from miles_core.serving.listener import ServerThread
from miles_core.version import __version__

PER_ENGINE = 512
"""Calls in flight for each engine, where ``--miles-router-max-connections`` says nothing."""
WAITING = 4
"""Calls that may wait, as a multiple of those in flight."""
CALL_SECONDS = 60.0
RESTART_ATTEMPTS = 32
"""Engines that a prompt may lose, where they are started again."""


class RouterService:
    """See the protocol."""

    tells_all = True

    def __init__(self, config: Config) -> None:
        self._options = config.get(RouterOptions)
        self._restarts = config.get(FaultToleranceOptions).use_fault_tolerance
        self._template = config.get(DataOptions).apply_chat_template_kwargs
        self._thread: ServerThread | None = None
        self._server: RouterServer | None = None

    def start(self, launch: RouterLaunch) -> str:
        """See the protocol.

        Raises:
            MilesError: M440, no port; M445, no engine can be reached.
        """
        _raise_file_limit()
        options = self._options
        most = options.miles_router_max_connections or PER_ENGINE * max(len(launch.urls), 1)
        settings = RouterSettings(
            policy=options.miles_router_policy,
            max_connections=most,
            max_waiting=WAITING * most,
            timeout=options.miles_router_timeout,
            failure_threshold=options.miles_router_health_check_failure_threshold,
            patience=RESTART_SECONDS if self._restarts else PATIENCE,
            attempts=RESTART_ATTEMPTS if self._restarts else ATTEMPTS,
            checkpoint=launch.model,
            template_options=self._template,
            api_key=launch.api_key,
        )
        self._server = RouterServer(settings, launch.urls, launch.middlewares)
        self._thread = ServerThread(self._server.app(), launch.host, launch.port, wrap=self._server.front)
        url = self._thread.start()
        reasons = self._call(self._server.probe())
        if launch.urls and len(reasons) == len(launch.urls):
            self.stop()
            raise RunError(
                "M445",
                f"the router {url} reaches none of {len(launch.urls)} engines",
                owner=f"miles-core {__version__}",
                why=next(iter(reasons.values())),
                fix=f"see the logs in {launch.log_dir}",
            )
        return url

    def add_worker(self, url: str) -> None:
        """See the protocol."""
        self._call(self._running.add_worker(url))

    def remove_worker(self, url: str) -> None:
        """See the protocol."""
        self._call(self._running.remove_worker(url))

    def published(self, version: int) -> None:
        """See the protocol."""
        self._call(self._running.published(version))

    def stop(self) -> None:
        """See the protocol."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    @property
    def _running(self) -> RouterServer:
        assert self._server is not None, "started first"
        return self._server

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._thread is not None, "started first"
        assert self._thread.loop is not None, "the thread serves"
        return asyncio.run_coroutine_threadsafe(work, self._thread.loop).result(CALL_SECONDS)


def _raise_file_limit() -> None:
    """Each call in flight takes two connections, and many systems begin with 1,024 files."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65_536 if hard == resource.RLIM_INFINITY else hard
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
