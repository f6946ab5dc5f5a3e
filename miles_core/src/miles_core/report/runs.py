"""What a run folder says of its run, at a glance."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miles_core.errors import UsageError
from miles_core.loggers.figures import REWARD, STEP_SECONDS, evaluations
from miles_core.loggers.jsonl import FILE as METRICS
from miles_core.report.lifetime import FILE as LIFETIME
from miles_core.report.lifetime import Session, read_sessions

TAIL = 256 * 1024
"""Bytes of the end of ``metrics.jsonl`` that are read for a glance."""
RUNS = "runs"
SUMMARY = "summary.txt"
_MARKS = (LIFETIME, "plugins.lock.json", METRICS)


@dataclass(frozen=True)
class Glance:
    """One run.

    Attributes:
        path: of the run folder.
        state: see :attr:`miles_core.report.lifetime.Session.state`; ``finished`` or ``unknown`` without a ``run.json``.
        done, total: rollouts; None when nothing says so.
        reward: mean of the last rollout.
        evaluations: last mean reward of each evaluation set.
        seconds: that its processes ran, all together.
        started: seconds since 1970.
        error: what ended it.
    """

    path: Path
    state: str
    done: int | None = None
    total: int | None = None
    reward: float | None = None
    evaluations: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    started: float | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


def find_runs(folder: Path) -> list[Path]:
    """The run folders in ``folder``, or itself when it is one; the oldest first."""
    if is_run(folder):
        return [folder]
    try:
        found = [each for each in folder.iterdir() if each.is_dir() and is_run(each)]
    except OSError:
        return []
    return sorted(found, key=lambda each: (_began(each), each.name))


def is_run(folder: Path) -> bool:
    """Whether a run wrote into the folder."""
    return any((folder / name).is_file() for name in _MARKS)


def find_run(name: str) -> Path:
    """The run folder of that path, or of that name below ``runs``.

    Raises:
        UsageError: there is none (M307).
    """
    for path in (Path(name).expanduser(), Path(RUNS, name)):
        if is_run(path):
            return path
    why = "the folder has nothing that a run writes" if Path(name).is_dir() else "the folder does not exist"
    raise UsageError("M307", f"there is no run {name!r}", owner="miles-core", why=why, fix="see miles runs list")


def glance(folder: Path) -> Glance:
    """Read as little as tells how the run is."""
    sessions = read_sessions(folder)
    done, reward, latest = None, None, None
    scores: dict[str, float | None] = {}
    for row in _last_rows(folder / METRICS):
        latest = latest if latest is not None else _number(row.get("time"))
        if done is None and STEP_SECONDS in row and isinstance(row.get("step"), int):
            done, reward = int(row["step"]) + 1, _number(row.get(REWARD))
        for name in evaluations(dict.fromkeys(row, 0.0)):
            scores.setdefault(name, _number(row[f"eval/{name}"]))
    known = {name: value for name, value in reversed(scores.items()) if value is not None}
    if not sessions:
        state = "finished" if (folder / SUMMARY).exists() else "unknown"
        return Glance(folder, state, done, None, reward, known)
    last = sessions[-1]
    return Glance(
        folder,
        last.state,
        done if done is not None else 0,
        last.total,
        reward,
        known,
        _seconds(sessions, latest),
        sessions[0].started,
        last.error,
    )


def _seconds(sessions: list[Session], latest: float | None) -> float:
    """Seconds of all sessions; one that was killed counts to its last metrics."""
    total = 0.0
    for session in sessions:
        end = session.ended
        if end is None:
            end = time.time() if session.state == "running" else latest
        total += max(0.0, (end or session.started) - session.started)
    return total


def _last_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows at the end of ``metrics.jsonl``, the last one first."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return
    # The first line may be cut, and the last one may be about to be written.
    for line in reversed(lines[1:] if size > TAIL else lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _began(folder: Path) -> float:
    sessions = read_sessions(folder)
    return sessions[0].started if sessions else folder.stat().st_mtime
