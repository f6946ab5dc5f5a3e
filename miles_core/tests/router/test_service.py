"""The router as a run starts it: its options, and what it is told."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from miles_core.config import DataOptions, FaultToleranceOptions, RouterOptions
from miles_core.errors import RunError
from miles_core.protocols import RouterLaunch
from miles_core.router.service import RouterService
from miles_core.serving import ServerThread


class Options:
    """The groups that the router reads."""

    def __init__(self, use_fault_tolerance: bool = False, **router: Any) -> None:
        self.groups = {
            RouterOptions: RouterOptions(**router),
            DataOptions: DataOptions(),
            FaultToleranceOptions: FaultToleranceOptions(use_fault_tolerance=use_fault_tolerance),
        }

    def get(self, group: type) -> Any:
        return self.groups[group]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def worker() -> Iterator[str]:
    app = web.Application()

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"key": request.headers.get("Authorization"), "weight_version": "1"})

    app.router.add_route("*", "/{path:.*}", answer)
    thread = ServerThread(app)
    yield thread.start()
    thread.stop()


def service(**options: Any) -> RouterService:
    config: Any = Options(**options)
    return RouterService(config)


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as response:
        found: dict[str, Any] = json.load(response)
        return found


def test_options_are_the_routers_settings(worker: str, model: Path) -> None:
    router = service(
        miles_router_timeout=7.5,
        miles_router_max_connections=3,
        miles_router_health_check_failure_threshold=2,
        miles_router_policy="least-loaded",
    )
    router.start(RouterLaunch((worker,), model))
    settings = router._running.settings
    router.stop()
    assert (settings.timeout, settings.max_connections, settings.max_waiting) == (7.5, 3, 12)
    assert (settings.failure_threshold, settings.policy) == (2, "least-loaded")
    other = service()
    other.start(RouterLaunch((worker, worker + "/"), model, api_key="secret"))
    settings = other._running.settings
    other.stop()
    assert (settings.max_connections, settings.timeout, settings.api_key) == (1024, None, "secret")
    assert (settings.patience, settings.attempts) == (30.0, 4)
    again = service(use_fault_tolerance=True)
    again.start(RouterLaunch((worker,), model))
    assert (again._running.settings.patience, again._running.settings.attempts) == (1800.0, 32)
    again.stop()
    assert "secret" not in repr(settings)


def test_it_is_told_of_engines_and_versions(worker: str, model: Path) -> None:
    router = service()
    url = router.start(RouterLaunch((worker,), model))
    try:
        assert url.startswith("http://127.0.0.1:")
        assert get(f"{url}/list_workers") == {"urls": [worker]}
        router.remove_worker(worker)
        router.remove_worker("http://127.0.0.1:9")
        assert get(f"{url}/list_workers") == {"urls": []}
        router.add_worker(worker)
        assert get(f"{url}/list_workers") == {"urls": [worker]}
        router.published(4)
        assert router._running.pool.version == 4
    finally:
        router.stop()


def test_a_router_that_reaches_no_engine_does_not_start(worker: str, model: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(RunError, match="reaches none of 1 engines") as caught:
        service().start(RouterLaunch((dead,), model, log_dir=Path("logs")))
    assert caught.value.code == "M445"
    router = service()
    router.start(RouterLaunch((dead, worker), model))
    router.stop()
