"""Grading in worker processes, with a deadline that kills.

A grader that meets hostile input cannot be stopped from inside: a big power runs for hours in C without looking at signals or
threads. So it runs in a process of its own, which is killed and replaced when it takes too long, and whose memory is limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from miles_core.samples import Invalid, Score, Scored, Timeout

START_SECONDS = 120.0
GRADES_PER_WORKER = 2000
"""Computer algebra caches what it has seen; a worker is renewed before that reaches its memory limit."""


class GradingPool:
    """Runs one function in worker processes.

    One thread feeds each worker, so the pool belongs to no event loop. Processes start when first needed. They end with the
    pool, and with the process that holds it, however that ends.

    Args:
        target: ``package.module:function`` to call with strings; it returns a number, or raises
            :class:`~miles_rewards.ungradable.Ungradable`.
        workers: processes.
        timeout: seconds that one call may take; waiting for a free worker, and for one to start, does not count.
        memory: bytes that a worker may allocate beyond what it needs to start.
    """

    def __init__(self, target: str, *, workers: int, timeout: float, memory: int = 1 << 30) -> None:
        self.target = target
        self.timeout = timeout
        self.memory = memory
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grade")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._alive: set[_Worker] = set()
        self._closed = False

    async def grade(self, *arguments: str) -> Score:
        """The target's number as :class:`Scored`; a failure when there is none. Never raises for what the arguments hold."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._grade, arguments)

    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        with self._lock:
            return [worker.pid for worker in self._alive]

    async def close(self) -> None:
        """Kill the workers. Calls still waiting end as cancelled, running ones as :class:`Invalid`."""
        self._closed = True
        with self._lock:
            for worker in self._alive:
                worker.kill()
        await asyncio.get_running_loop().run_in_executor(None, lambda: self._threads.shutdown(cancel_futures=True))
        with self._lock:
            for worker in self._alive:
                worker.reap()
            self._alive.clear()

    def _grade(self, arguments: tuple[str, ...]) -> Score:
        """In a pool thread: send to this thread's worker, with one more try when the worker dies."""
        died = "closed"
        for _ in range(2):
            if self._closed:
                break
            worker: _Worker | None = None
            try:
                worker = self._worker()
                reply = worker.call(arguments, self.timeout)
            except TimeoutError:
                self._drop(worker)
                return Timeout(self.timeout, "the grader was killed")
            except (EOFError, OSError) as error:
                self._drop(worker)
                died = str(error)
                continue
            if reply.get("last"):
                self._drop(worker)
            if "score" in reply:
                return Scored(float(reply["score"]))  # type: ignore[arg-type]
            return Invalid(str(reply["invalid"]))
        return Invalid(f"the grading process died: {died}")

    def _worker(self) -> _Worker:
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is not None and worker.calls < GRADES_PER_WORKER:
            return worker
        self._drop(worker)
        worker = _Worker(self.target, self.memory)
        with self._lock:
            self._alive.add(worker)
        self._own.worker = worker
        if self._closed:
            worker.kill()
        worker.wait_ready()
        return worker

    def _drop(self, worker: _Worker | None) -> None:
        worker = worker or getattr(self._own, "worker", None)
        if worker is None:
            return
        worker.kill()
        worker.reap()
        self._own.worker = None
        with self._lock:
            self._alive.discard(worker)


class _Worker:
    """One process; lines of JSON go in and come out."""

    def __init__(self, target: str, memory: int) -> None:
        self.calls = 0
        self._buffer = b""
        command = [sys.executable, "-P", "-m", "miles_rewards.pool_worker", target, str(memory), str(os.getpid())]
        # sys.path travels along: the parent may have been given more than its environment says.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=environment
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Return when the worker has imported its grader.

        Raises:
            EOFError: it ended, or could not import.
        """
        try:
            reply = self._read(START_SECONDS)
        except TimeoutError:
            raise EOFError(f"not ready after {START_SECONDS:g} s") from None
        if "failed" in reply:
            raise EOFError(str(reply["failed"]))

    def call(self, arguments: tuple[str, ...], timeout: float) -> dict[str, object]:
        self.calls += 1
        assert self._process.stdin is not None
        # ASCII JSON carries lone surrogates, which UTF-8 cannot.
        self._process.stdin.write(json.dumps(arguments).encode("ascii") + b"\n")
        return self._read(timeout)

    def kill(self) -> None:
        self._process.kill()

    def reap(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self, timeout: float) -> dict[str, object]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise EOFError(f"exit status {self._process.wait()}")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        reply: dict[str, object] = json.loads(line)
        return reply
