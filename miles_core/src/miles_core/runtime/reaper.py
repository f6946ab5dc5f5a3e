"""The driver's side of the reaper: no process or folder of a run outlives its driver, however that ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil

from miles_core.runtime import reaper_main


class Reaper:
    """Tells a small helper process what the run started. When the driver dies, the helper ends all of it."""

    def __init__(self) -> None:
        self._adopted: dict[int, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(reaper_main.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Process id of the helper."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the helper runs."""
        return self._process.poll() is None

    def adopt_children(self) -> list[psutil.Process]:
        """Report every process below the driver that is not reported yet; returns all that live now."""
        found = [p for p in psutil.Process().children(recursive=True) if p.pid != self.pid]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.pid not in self._adopted:
                    self._adopted[process.pid] = process.create_time()
                    self._tell(f"process {process.pid} {self._adopted[process.pid]}")
        return found

    def adopt_folder(self, folder: Path) -> None:
        """Have ``folder`` removed when the driver dies."""
        self._tell(f"folder {folder}")

    def end_all(self, timeout: float = 10.0) -> list[int]:
        """Kill every adopted process that still lives, with its children; returns the pids that would not go."""
        self.adopt_children()
        alive = [pid for pid, created in self._adopted.items() if reaper_main.is_same(pid, created)]
        for pid in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        _, left = psutil.wait_procs([p for p in map(_process, alive) if p is not None], timeout)
        return [p.pid for p in left if reaper_main.is_same(p.pid, self._adopted[p.pid])]

    def dismiss(self) -> None:
        """The run has cleaned up by itself."""
        self._tell("done")
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
