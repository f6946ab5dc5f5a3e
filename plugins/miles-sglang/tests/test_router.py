"""SGLang's router in front of engines: a stand-in, and the real one if ``MILES_TEST_SGLANG_ROUTER`` names a Python that has it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
import sys
import time
from pathlib import Path

import psutil
import pytest

from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.protocols import RouterLaunch
from miles_core.serving import EngineClient
from miles_sglang.engine import KEY_FILE
from miles_sglang.options import SGLangOptions
from miles_sglang.router import SGLangRouter

FAKE = shlex.join([sys.executable, str(Path(__file__).with_name("fake_router.py"))])
PYTHON = os.environ.get("MILES_TEST_SGLANG_ROUTER") or (sys.executable if importlib.util.find_spec("sglang_router") else "")
REAL = shlex.join([PYTHON, "-m", "sglang_router.launch_router"])
BOTH = [
    pytest.param(FAKE, id="stand-in"),
    pytest.param(REAL, id="real", marks=pytest.mark.skipif(not PYTHON, reason="sglang-router is not installed")),
]


@pytest.fixture
def route(tmp_path):
    """Start routers; they are stopped at the end of the test."""
    started = []

    def start(command, urls, **launch):
        router = SGLangRouter(Config.of(SGLangOptions(router_launcher=command)))
        started.append(router)
        return router, router.start(RouterLaunch(tuple(urls), Path("model"), log_dir=tmp_path, **launch))

    yield start
    for router in started:
        router.stop()


def ask(url, *requests):
    async def main():
        client = EngineClient([url], batch_stream=False, timeout=30.0)
        try:
            return [result async for result in client.generate(requests)]
        finally:
            await client.close()

    return asyncio.run(main())


@pytest.mark.parametrize("command", BOTH)
def test_requests_go_through_and_engines_come_and_go(route, two, request_of, command):
    urls = [each.url for each in two]
    router, url = route(command, urls)
    assert set(router._listed()) == set(urls)
    results = ask(url, *[request_of(f"r{i}") for i in range(8)])
    assert sorted(result.rid for result in results) == [f"r{i}" for i in range(8)]
    router.remove_worker(urls[0])
    assert set(router._listed()) == {urls[1]}
    assert ask(url, request_of("alone"))[0].output_ids == (1, 2, 3, 4)
    router.add_worker(urls[0])
    router.add_worker(urls[0])
    assert set(router._listed()) == set(urls)
    router.published(1)


@pytest.mark.parametrize("command", BOTH)
def test_a_router_that_ends_is_started_again_with_its_engines(route, two, request_of, command):
    router, url = route(command, [two[0].url])
    first = router._process
    for process in psutil.Process(first.pid).children():
        process.kill()
    deadline = time.monotonic() + 30
    while router._process is first and time.monotonic() < deadline:
        router._stopped.wait(0.05)
    with router._lock:
        assert set(router._listed()) == {two[0].url}
    assert ask(url, request_of("again"))[0].output_ids == (1, 2, 3, 4)


def test_parts_of_prefill_and_decode_are_registered(route, serve):
    engines = [serve(rank=rank, own={"prefill_num_servers": 1}) for rank in (0, 1)]
    modes = [each.engine.info()["disaggregation_mode"] for each in engines]
    assert modes == ["prefill", "decode"]
    router, _ = route(FAKE, [each.url for each in engines])
    assert "--pd-disaggregation" in router._process.command
    first, second = (router._listed()[each.url] for each in engines)
    assert (first["worker_type"], second["worker_type"]) == ("prefill", "decode")
    assert first["bootstrap_port"] == int(engines[0].engine.info()["disaggregation_bootstrap_port"])
    assert "bootstrap_port" not in second


def test_a_key_between_router_and_engines_is_on_no_command_line_and_stays_in_no_file(route, serve, request_of):
    served = serve(api_key="hush")
    served.engine.health(5.0)
    served.engine.pause()
    served.engine.resume()
    router, _ = route(FAKE, [served.url], api_key="hush")
    assert router._listed()[served.url]["api_key"] == "hush"
    process = psutil.Process(served.engine.info()["pid"])
    files = [Path(word.partition("=")[2] or word) for word in process.cmdline()]
    folder = next(file for file in files if file.name == KEY_FILE).parent
    assert folder.is_dir()
    assert not (folder / KEY_FILE).exists()
    assert "hush" not in " ".join([*process.cmdline(), *router._process.command])
    with pytest.raises(MilesError, match=r"M443.*HTTP 401"):
        ask(served.url, request_of("a"))


@pytest.mark.skipif(importlib.util.find_spec("sglang_router") is not None, reason="sglang-router is installed")
def test_without_the_package_both_remedies_are_named(route):
    with pytest.raises(MilesError, match=r"M518.*miles-sglang\[router\].*--use-miles-router"):
        route("", [])


def test_a_router_that_does_not_start(route):
    with pytest.raises(MilesError, match=r"M511.*sglang-router ended with exit code 3"):
        route(f"{sys.executable} -c 'import sys; sys.exit(3)'", [])
