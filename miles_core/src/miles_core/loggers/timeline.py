"""``timeline.jsonl`` in the run folder: when each phase of each rollout began, and how long it took."""

from __future__ import annotations

import json
from pathlib import Path

from miles_core.loggers.jsonl import keep_rows

FILE = "timeline.jsonl"


class Timeline:
    """Appends ``{"phase": .., "rollout": .., "start": seconds since 1970, "seconds": ..}``.

    Args:
        run_dir: the run folder.
        first: the rollout that the run begins with; rows of it and of later ones are of work that is made again, and are cut off.
    """

    def __init__(self, run_dir: Path, first: int) -> None:
        self._path = run_dir / FILE
        keep_rows(self._path, lambda row: int(row.get("rollout", -1)) < first)

    def add(self, phase: str, rollout_id: int, start: float, seconds: float) -> None:
        """A phase ended. ``rollout_id`` is -1 for what came before the first rollout."""
        row = {"phase": phase, "rollout": rollout_id, "start": round(start, 3), "seconds": round(seconds, 4)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
