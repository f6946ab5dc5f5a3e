"""The first death among watched processes."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from miles_core.runtime.deaths import Deaths, runs


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def wait_for_first(deaths: Deaths) -> list[str]:
    deadline = time.monotonic() + 10
    while not deaths.first() and time.monotonic() < deadline:
        time.sleep(0.01)
    return deaths.first()


@pytest.mark.parametrize("descriptors", [True, False], ids=["process descriptors", "looking"])
def test_the_first_death_stays_the_first(descriptors: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not descriptors:
        monkeypatch.delattr("os.pidfd_open", raising=False)
    processes = {name: sleeper() for name in ("a", "b", "c")}
    deaths = Deaths()
    try:
        for name, process in processes.items():
            deaths.add(name, psutil.Process(process.pid))
        deaths.add("a", psutil.Process(processes["b"].pid))
        assert deaths.processes["a"].pid == processes["a"].pid
        assert deaths.first() == []
        processes["b"].kill()
        assert wait_for_first(deaths) == ["b"]
        processes["a"].kill()
        processes["a"].wait(10)
        assert deaths.first() == ["b"]
        assert not runs(psutil.Process(processes["b"].pid)), "nobody has waited for it: a zombie"
    finally:
        deaths.close()
        for process in processes.values():
            process.kill()
            process.wait(10)


def test_a_process_that_died_before_it_was_watched() -> None:
    process = sleeper()
    watched = psutil.Process(process.pid)
    process.kill()
    process.wait(10)
    deaths = Deaths()
    deaths.add("gone", watched)
    assert wait_for_first(deaths) == ["gone"]
    deaths.close()
