"""Which of a set of processes died first."""

from __future__ import annotations

import os
import select
import threading

import psutil

POLL_SECONDS = 0.2


class Deaths:
    """Watches processes from a thread. Once one is gone, those that it takes along are not mistaken for the cause.

    Linux tells the moment of a death through process descriptors; elsewhere the processes are looked at five times a second.
    """

    def __init__(self) -> None:
        self._processes: dict[str, psutil.Process] = {}
        self._descriptors: dict[int, str] = {}
        self._first: list[str] = []
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="deaths", daemon=True)
        self._thread.start()

    @property
    def processes(self) -> dict[str, psutil.Process]:
        """Watched processes by name."""
        with self._lock:
            return dict(self._processes)

    def add(self, name: str, process: psutil.Process) -> None:
        """Watch a process; a name that is known already is left alone."""
        with self._lock:
            if name in self._processes or self._closed.is_set():
                return
            self._processes[name] = process
            if hasattr(os, "pidfd_open"):
                try:
                    self._descriptors[os.pidfd_open(process.pid)] = name
                except ProcessLookupError:
                    self._first = self._first or [name]

    def first(self) -> list[str]:
        """Names of the processes that died first, at the same moment as far as can be told; empty while all live."""
        with self._lock:
            return list(self._first)

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()
        with self._lock:
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors.clear()

    def _watch(self) -> None:
        while not self._closed.is_set() and not self.first():
            with self._lock:
                descriptors, processes = dict(self._descriptors), dict(self._processes)
            if hasattr(os, "pidfd_open"):
                poll = select.poll()
                for descriptor in descriptors:
                    poll.register(descriptor, select.POLLIN)
                dead = [descriptors[descriptor] for descriptor, _ in poll.poll(POLL_SECONDS * 1000)]
            else:
                self._closed.wait(POLL_SECONDS)
                dead = [name for name, process in processes.items() if not runs(process)]
            if dead:
                with self._lock:
                    self._first = self._first or dead


def runs(process: psutil.Process) -> bool:
    """Whether a process still does anything: a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
