"""The logger ``jsonl``: ``metrics.jsonl`` in the run folder, one object per line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from miles_core.errors import RunError

if TYPE_CHECKING:
    from miles_core.options import Config

FILE = "metrics.jsonl"


class JsonlLogger:
    """Appends ``{"step": .., "time": seconds since 1970, "<metric>": ..}``, each line on disk when ``log`` returns.

    JSON has no number for NaN and infinity: such a metric is null, and ``"nonfinite"`` says which it was. A resumed run goes on
    in the same file; steps that it repeats are there twice, the later line counts.
    """

    def __init__(self, config: Config) -> None:
        self._file: TextIO | None = None

    def start(self, run_dir: str, settings: Mapping[str, object]) -> None:
        """Open the file.

        Raises:
            RunError: it cannot be written (M467).
        """
        path = Path(run_dir) / FILE
        try:
            _cut_partial_line(path)
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


def _cut_partial_line(path: Path) -> None:
    """Remove the part of a line that a crash left at the end."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        keep = end
        while keep:
            file.seek(keep - 1)
            if file.read(1) == b"\n":
                break
            keep -= 1
        if keep < end:
            file.truncate(keep)


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        "M467",
        f"cannot write metrics to {path}",
        owner="miles-core",
        why=error.strerror or str(error),
        fix="free space or make the run folder writable, then go on from the last saved state with --load",
        path=str(path),
    )
