"""Parquet files, read with pyarrow, which is optional."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from miles_core.errors import UsageError

BATCH_ROWS = 1024
_LOOK = """
import json, sys
import pyarrow.parquet as parquet
file = parquet.ParquetFile(sys.argv[1])
print(json.dumps([file.metadata.num_rows, file.schema_arrow.names]))
"""


@dataclass(frozen=True)
class ParquetShape:
    """Rows and columns of a file."""

    rows: int
    columns: tuple[str, ...]


def is_parquet(path: Path) -> bool:
    """Whether a file is one by its name."""
    return path.suffix.lower() in (".parquet", ".pq")


def look(path: Path) -> ParquetShape:
    """Rows and columns, found in a process of its own: pyarrow loads NumPy, which validation does without.

    Raises:
        UsageError: pyarrow is not installed (M322), or the file is damaged (M303).
    """
    done = subprocess.run([sys.executable, "-c", _LOOK, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise _missing(path) if "No module named 'pyarrow" in last else _damaged(path, last)
    rows, columns = json.loads(done.stdout)
    return ParquetShape(rows, tuple(columns))


def write_lines(path: Path, stream: BinaryIO, stop: int | None = None) -> None:
    """Write a file's first ``stop`` rows as JSON Lines, a batch at a time.

    Bytes become base64, times ISO 8601, decimals numbers; what else JSON has no word for becomes text.

    Raises:
        OSError: the file cannot be read.
        UsageError: pyarrow is not installed (M322), or the file is damaged (M303).
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise _missing(path) from error
    left = stop
    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches(BATCH_ROWS):
            rows = batch.to_pylist() if left is None else batch.slice(0, left).to_pylist()
            stream.writelines(json.dumps(row, default=_plain).encode() + b"\n" for row in rows)
            if left is not None:
                left -= len(rows)
                if left <= 0:
                    break
    except pyarrow.ArrowInvalid as error:
        raise _damaged(path, str(error)) from error
    stream.flush()


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return float(value) if hasattr(type(value), "__float__") else str(value)  # type: ignore[arg-type]


def _missing(path: Path) -> UsageError:
    fix = "pip install pyarrow, or convert the file to JSON Lines"
    return UsageError("M322", "a Parquet file needs the library pyarrow", owner=str(path), why="it is not installed", fix=fix)


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError("M303", "it is no Parquet file", owner=str(path), why=why.splitlines()[0], fix="write it again")
