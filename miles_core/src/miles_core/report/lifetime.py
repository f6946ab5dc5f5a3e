"""``run.json`` in the run folder: the processes that drove the run, and how each ended."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from miles_core.errors import MilesError
from miles_core.state.files import write_whole

FILE = "run.json"


@dataclass(frozen=True)
class Session:
    """One process that drove the run.

    Attributes:
        pid, host: of the driver.
        born: when the process began, in clock ticks since its machine did: a later process may have the same id.
        started, ended: seconds since 1970; ``ended`` is None while it runs, and after it was killed.
        outcome: ``finished``, ``failed`` or ``interrupted``; empty as long as it did not end.
        error: the line of the error that ended it.
        total: rollouts of the run.
    """

    pid: int
    host: str
    born: int
    started: float
    total: int
    ended: float | None = None
    outcome: str = ""
    error: str = ""

    @property
    def state(self) -> str:
        """``running``, ``finished``, ``failed``, ``interrupted``, ``killed``; ``on HOST`` where nobody can see it."""
        if self.outcome:
            return self.outcome
        if self.host != socket.gethostname():
            return f"on {self.host}"
        return "running" if born(self.pid) == self.born else "killed"


def read_sessions(run_dir: Path) -> list[Session]:
    """The sessions of a run, the oldest first; none when the file is missing or broken."""
    try:
        found = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
        return [Session(**each) for each in found["sessions"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


@contextlib.contextmanager
def lifetime(run_dir: Path, total: int) -> Iterator[None]:
    """Record that this process drives the run, and how that ended. Exceptions go on.

    Args:
        total: rollouts of the run.
    """
    earlier = read_sessions(run_dir)
    session = Session(os.getpid(), socket.gethostname(), born(os.getpid()), round(time.time(), 3), total)
    _write(run_dir, [*earlier, session])
    outcome, error = "failed", ""
    try:
        yield
        outcome = "finished"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    except BaseException as caught:
        error = caught.line() if isinstance(caught, MilesError) else f"{type(caught).__name__}: {caught}"
        raise
    finally:
        ended = replace(session, ended=round(time.time(), 3), outcome=outcome, error=error)
        # A disk that is full must not hide the error that ended the run.
        with contextlib.suppress(OSError):
            _write(run_dir, [*earlier, ended])


def born(pid: int) -> int:
    """When a process of this machine began, in clock ticks since the machine did; 0 when there is no such process.

    Where there is no ``/proc`` the answer is 1 for any process that lives.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return 0
        try:
            os.kill(pid, 0)
        except OSError:
            return 0
        return 1
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended; it only waits for its parent to look.
    return 0 if fields[0] in "ZX" else int(fields[19])


def _write(run_dir: Path, sessions: list[Session]) -> None:
    write_whole(run_dir / FILE, json.dumps({"sessions": [asdict(each) for each in sessions]}, indent=2) + "\n")
