"""The router of SGLang, the package ``sglang-router``, as the router of a run: started, told of engines, watched, started again."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from miles_core.errors import MilesError, RunError, UsageError
from miles_core.options import Config
from miles_core.protocols import RouterLaunch
from miles_sglang.command import base_url, free_port, launcher
from miles_sglang.control import Control
from miles_sglang.options import SGLangOptions
from miles_sglang.server import OWNER, ServerProcess

PACKAGE = "sglang_router"
START_SECONDS = 60.0
WORKER_SECONDS = 120.0
"""Most seconds until the router has found an engine well."""
WATCH_SECONDS = 1.0
KEY_VARIABLE = "SGLANG_ROUTER_MILES_KEY"
WITH_KEY = f"import os, sys; from sglang_router.launch_router import launch_router, parse_router_args as p; \
a = p(sys.argv[1:]); a.api_key = os.environ.pop({KEY_VARIABLE!r}, None); launch_router(a)"
"""Starts the router with a key that no list of processes shows."""
log = logging.getLogger(__name__)


class SGLangRouter:
    """Implements :class:`miles_core.protocols.Router`.

    A router that ends is started again at its address, with the engines that it had.
    """

    tells_all = False

    def __init__(self, config: Config) -> None:
        self._options = config.get(SGLangOptions)
        self._process: ServerProcess | None = None
        self._remote: Control | None = None
        self._start: Callable[[], ServerProcess] | None = None
        self._key: str | None = None
        self._workers: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()
        self._stopped = threading.Event()

    def start(self, launch: RouterLaunch) -> str:
        """See the protocol.

        Raises:
            MilesError: ``M518``, there is no ``sglang-router``; ``M519``, it does not start, or finds an engine unwell.
        """
        command = self._options.router_launcher
        if not command and importlib.util.find_spec(PACKAGE) is None:
            why = "engine sglang puts it in front of several engines"
            fix = "pip install 'miles-sglang[router]', or take miles' own with --use-miles-router"
            raise UsageError("M518", "sglang-router is not installed", owner=OWNER, why=why, fix=fix)
        self._key = launch.api_key
        self._workers = {url: self._described(url) for url in launch.urls}
        pairs = any(each["worker_type"] != "regular" for each in self._workers.values())
        port = launch.port or free_port(launch.host)
        words = [*launcher(command, "-c", WITH_KEY), *self._arguments(launch, port, pairs)]
        environment = {**os.environ, **({KEY_VARIABLE: self._key} if self._key else {})}
        file = launch.log_dir / "sglang-router.log" if launch.log_dir is not None else None
        self._start = lambda: ServerProcess("sglang-router", words, environment, file)
        url = base_url(launch.host, port)
        self._remote = Control(url, self._key)
        try:
            self._open()
        except BaseException:
            self.stop()
            raise
        threading.Thread(target=self._watch, name="sglang-router", daemon=True).start()
        return url

    def _arguments(self, launch: RouterLaunch, port: int, pairs: bool) -> list[str]:
        return [
            f"--host={launch.host}",
            f"--port={port}",
            f"--policy={self._options.router_policy}",
            f"--request-timeout-secs={self._options.router_request_timeout}",
            # Its own figures are on a port of their own, which another run on this machine would have taken.
            "--prometheus-host=127.0.0.1",
            f"--prometheus-port={free_port('127.0.0.1')}",
            "--worker-startup-check-interval=1",
            "--health-check-interval-secs=5",
            "--log-level=warn",
            *(["--pd-disaggregation"] if pairs else []),
        ]

    def add_worker(self, url: str) -> None:
        """See the protocol."""
        with self._lock:
            self._workers[url] = self._described(url)
            self._register(url)

    def remove_worker(self, url: str) -> None:
        """See the protocol."""
        with self._lock:
            self._workers.pop(url, None)
            found = self._listed().get(url)
            if found is not None:
                self._control.delete(f"/workers/{found['id']}")
                self._until(lambda: url not in self._listed(), f"still lists {url}")

    def published(self, version: int) -> None:
        """See the protocol. It keeps nothing that weights make, only which engine has seen which prompts."""

    def stop(self) -> None:
        """See the protocol."""
        self._stopped.set()
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.stop()

    def _open(self) -> None:
        """Start the process and tell it of every engine."""
        assert self._start is not None
        self._process = self._start()
        self._process.wait(self._control.url, "/health", START_SECONDS)
        for url in self._workers:
            self._register(url)

    def _watch(self) -> None:
        while not self._stopped.wait(WATCH_SECONDS):
            with self._lock:
                if self._process is None or self._process.ended() is None:
                    continue
                log.error("sglang-router ended with exit code %s: starting it again", self._process.ended())
                try:
                    self._open()
                except MilesError as error:
                    log.error("%s", error.line())

    def _register(self, url: str) -> None:
        if url not in self._listed():
            self._control.post("/workers", self._workers[url])
        self._until(lambda: bool(self._listed().get(url, {}).get("is_healthy")), f"does not find {url} well")

    def _listed(self) -> dict[str, dict[str, Any]]:
        return {str(each["url"]).rstrip("/"): each for each in self._control.get("/workers")["workers"]}

    def _until(self, done: Callable[[], bool], trouble: str) -> None:
        deadline = time.monotonic() + WORKER_SECONDS
        while not done():
            assert self._process is not None
            self._process.check()
            if time.monotonic() > deadline:
                what = f"sglang-router {trouble} after {WORKER_SECONDS:g} s"
                raise self._process.error("M519", what, why=self._process.last_line())
            time.sleep(0.1)

    def _described(self, url: str) -> dict[str, Any]:
        """What the router has to know of an engine: its part in prefill and decode, which it says itself."""
        info = Control(url, self._key).get("/server_info")
        mode = info.get("disaggregation_mode") or "null"
        found: dict[str, Any] = {"url": url, "worker_type": "regular" if mode == "null" else mode}
        if mode == "prefill":
            found["bootstrap_port"] = int(info["disaggregation_bootstrap_port"])
        if self._key:
            found["api_key"] = self._key
        return found

    @property
    def _control(self) -> Control:
        if self._remote is None:
            raise RunError("M515", "the router was not started", owner=OWNER)
        return self._remote
