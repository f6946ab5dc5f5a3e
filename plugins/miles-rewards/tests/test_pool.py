"""The grading pool with real processes: deadlines, deaths, limits, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from miles_core.samples import Invalid, Score, Scored, Timeout
from miles_rewards.pool import GradingPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

GRADERS = '''
"""Graders that behave badly."""

import os
import pathlib
import time

from miles_rewards.ungradable import Ungradable


def number(text):
    return float(text)


def nap(text):
    time.sleep(float(text))
    return 1


def forever(text):
    return 9**9**9


def hog(text):
    return len(bytearray(1 << 34))


def suicide(text):
    os.kill(os.getpid(), 9)


def deep(text):
    return deep(text)


def refuse(text):
    raise Ungradable("no")


def noisy(text):
    print("not a reply", flush=True)
    os.system("echo neither")
    return 1


def stop_at_a_gate(path):
    """Leaves its process id; waits for ever the first time, answers the second."""
    mark = pathlib.Path(path)
    if mark.exists():
        return 1
    part = mark.with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.rename(mark)
    time.sleep(600)


def gate(path):
    while not pathlib.Path(path).exists():
        time.sleep(0.01)
    return 1
'''


@pytest.fixture
def graders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, with the module ``bad_graders``."""
    (tmp_path / "bad_graders.py").write_text(GRADERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def use(
    target: str, then: Callable[[GradingPool], Awaitable[object]], *, workers: int = 1, timeout: float = 20.0, memory: int = 1 << 30
) -> object:
    """Run ``then`` with a pool, and see that no process of it is left."""

    async def run() -> object:
        pool = GradingPool(f"bad_graders:{target}", workers=workers, timeout=timeout, memory=memory)
        try:
            return await then(pool)
        finally:
            pids = pool.pids()
            await pool.close()
            assert not [pid for pid in pids if alive(pid)]

    return asyncio.run(run())


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("target", "argument", "expected"),
    [
        ("number", "0.25", Scored(0.25)),
        ("refuse", "", Invalid("no")),
        ("noisy", "", Scored(1.0)),
        ("number", "x", Invalid("the grader failed: ValueError: could not convert string to float: 'x'")),
        ("number", "\ud800", None),
        ("hog", "", Invalid("grading needs too much memory")),
        ("deep", "", Invalid("grading recurses too deeply")),
        ("missing", "", None),
    ],
)
def test_one_call(graders: Path, target: str, argument: str, expected: Score | None) -> None:
    del graders
    got = use(target, lambda pool: pool.grade(argument))
    assert got == expected if expected else isinstance(got, Invalid)


def test_a_deadline_kills_and_the_next_call_has_a_new_worker(graders: Path) -> None:
    """A power in C listens to no signal that Python handles."""
    del graders

    async def then(pool: GradingPool) -> None:
        began = time.monotonic()
        assert await pool.grade("") == Timeout(0.5, "the grader was killed")
        first = time.monotonic() - began
        assert pool.pids() == []
        assert isinstance(await pool.grade(""), Timeout)
        assert first < 30

    use("forever", then, timeout=0.5)


def test_waiting_for_a_worker_does_not_count(graders: Path) -> None:
    del graders

    async def then(pool: GradingPool) -> list[Score]:
        return list(await asyncio.gather(*(pool.grade("0.4") for _ in range(8))))

    assert use("nap", then, timeout=2.0) == [Scored(1.0)] * 8


def test_a_killed_worker_is_replaced_and_the_call_repeated(graders: Path) -> None:
    mark = graders / "mark"

    async def then(pool: GradingPool) -> Score:
        task = asyncio.ensure_future(pool.grade(str(mark)))
        await asyncio.to_thread(wait_for, mark.exists)
        (pid,) = pool.pids()
        assert int(mark.read_text()) == pid
        os.kill(pid, signal.SIGKILL)
        score = await task
        assert pool.pids() != [pid]
        return score

    assert use("stop_at_a_gate", then) == Scored(1.0)


def test_a_worker_killed_between_calls_is_not_noticed(graders: Path) -> None:
    del graders

    async def then(pool: GradingPool) -> Score:
        await pool.grade("1")
        (pid,) = pool.pids()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(wait_for, lambda: not alive(pid))
        return await pool.grade("2")

    assert use("number", then) == Scored(2.0)


def test_input_that_kills_every_worker_is_invalid(graders: Path) -> None:
    del graders
    got = use("suicide", lambda pool: pool.grade(""))
    assert got == Invalid("the grading process died: exit status -9")


def test_the_event_loop_goes_on_and_workers_run_side_by_side(graders: Path) -> None:
    opened, other = graders / "opened", graders / "other"

    async def then(pool: GradingPool) -> None:
        other.touch()
        slow = asyncio.ensure_future(pool.grade(str(opened)))
        assert await pool.grade(str(other)) == Scored(1.0)
        assert not slow.done()
        opened.touch()
        assert await slow == Scored(1.0)

    use("gate", then, workers=2)


def test_closing_ends_a_running_call(graders: Path) -> None:
    mark = graders / "mark"

    async def run() -> None:
        pool = GradingPool("bad_graders:stop_at_a_gate", workers=1, timeout=600)
        task = asyncio.ensure_future(pool.grade(str(mark)))
        await asyncio.to_thread(wait_for, mark.exists)
        (pid,) = pool.pids()
        await pool.close()
        assert isinstance(await task, Invalid)
        assert not alive(pid)

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal")
def test_workers_die_with_their_parent(graders: Path) -> None:
    """Even in a computation that holds the interpreter's lock, where nobody reads the closed pipe."""
    script = (
        "import asyncio\n"
        "from miles_rewards.pool import GradingPool\n"
        "async def main():\n"
        "    pool = GradingPool('bad_graders:number', workers=1, timeout=600)\n"
        "    await pool.grade('1')\n"
        "    print(*pool.pids(), flush=True)\n"
        "    busy = GradingPool('bad_graders:forever', workers=1, timeout=600)\n"
        "    task = asyncio.ensure_future(busy.grade(''))\n"
        "    while not busy.pids(): await asyncio.sleep(0.01)\n"
        "    print(*busy.pids(), flush=True)\n"
        "    await task\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(graders), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()), int(parent.stdout.readline())]
        assert all(map(alive, pids))
    finally:
        parent.kill()
        parent.communicate()
    wait_for(lambda: not any(map(alive, pids)))
