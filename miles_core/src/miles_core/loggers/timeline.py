"""``timeline.jsonl`` in the run folder: when each phase of each rollout began, and how long it took."""

from __future__ import annotations

import json
from pathlib import Path

from miles_core.loggers.jsonl import keep_rows

FILE = "timeline.jsonl"
BEFORE = -1


class Timeline:
    """Appends ``{"phase": .., "rollout": .., "start": seconds since 1970, "seconds": ..}``.

    Args:
        run_dir: the run folder.
        first: the rollout that the run begins with. Rows of it and of later ones are of work that is made again, and are cut off;
            so is what an earlier process did before its first rollout.
    """

    def __init__(self, run_dir: Path, first: int) -> None:
        self._path = run_dir / FILE
        self._first = first
        keep_rows(self._path, lambda row: BEFORE < int(row.get("rollout", BEFORE)) < first)

    def add(self, phase: str, rollout_id: int, start: float, seconds: float) -> None:
        """A phase ended. What came before the first rollout of this process is of rollout -1."""
        number = rollout_id if rollout_id >= self._first else BEFORE
        row = {"phase": phase, "rollout": number, "start": round(start, 3), "seconds": round(seconds, 4)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
