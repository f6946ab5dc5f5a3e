"""The logger ``jsonl``: ``metrics.jsonl`` in the run folder, one object per line."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from miles_core.errors import RunError
from miles_core.loggers.axes import row_axis

if TYPE_CHECKING:
    from miles_core.options import Config

FILE = "metrics.jsonl"


class JsonlLogger:
    """Appends ``{"step": .., "time": seconds since 1970, "<metric>": ..}``, each line on disk when ``log`` returns.

    JSON has no number for NaN and infinity: such a metric is null, and ``"nonfinite"`` says which it was. A resumed run goes on
    in the same file: rows of steps that it makes again are cut off first.
    """

    def __init__(self, config: Config) -> None:
        self._file: TextIO | None = None

    def start(self, run_dir: str, settings: Mapping[str, object], first: Mapping[str, int]) -> None:
        """Open the file.

        Raises:
            RunError: it cannot be written (M467).
        """
        path = Path(run_dir) / FILE
        try:
            keep_rows(path, lambda row: _before(row, first))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, error) from error

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line."""
        if self._file is None:
            return
        row: dict[str, object] = {"step": step, "time": round(time.time(), 3)}
        nonfinite = {}
        for name, value in metrics.items():
            number = value if isinstance(value, int) else float(value)
            if not math.isfinite(number):
                nonfinite[name] = str(number)
            row[name] = None if name in nonfinite else number
        if nonfinite:
            row["nonfinite"] = nonfinite
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(Path(self._file.name), error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def keep_rows(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Leave out of a file of JSON lines what a resumed run makes again, and the part of a line that a crash left at the end.

    The file is replaced at once, and left alone when all of it stays.

    Raises:
        OSError: it cannot be read or written.
    """
    if not path.exists():
        return
    building = path.with_name(f".{path.name}.{os.getpid()}")
    dropped = False
    with path.open(encoding="utf-8", errors="replace") as old, building.open("w", encoding="utf-8") as new:
        for line in old:
            row = _row(line)
            if row is not None and keep(row):
                new.write(line)
            else:
                dropped = True
    if dropped:
        os.replace(building, path)
    else:
        building.unlink()


def _row(line: str) -> dict[str, Any] | None:
    if not line.endswith("\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _before(row: Mapping[str, Any], first: Mapping[str, int]) -> bool:
    return int(row.get("step", 0)) < first[row_axis(row)]


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        "M467",
        f"cannot write metrics to {path}",
        owner="miles-core",
        why=error.strerror or str(error),
        fix="free space or make the run folder writable, then go on from the last saved state with --load",
        path=str(path),
    )
