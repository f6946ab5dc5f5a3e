"""Memory and time of a data file of many rows: looked through, and then read in a shuffled order.

``python benchmarks/large_data.py [ROWS] [FOLDER]``; ten million rows by default.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from miles_core.data.source import Cursor
from miles_core.data.store import RowStore


def peak() -> float:
    """Most memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rows: int, folder: Path) -> dict[str, float]:
    """Write a file, look through it, and draw ten thousand rows."""
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f'{{"input": "What is {i} plus {i}? Think step by step.", "label": "{2 * i}"}}\n' for i in range(rows))
    before = peak()
    started = time.perf_counter()
    store = RowStore(str(path), folder)
    for record, _ in store.scan():
        store.keep(record)
    scanned = time.perf_counter()
    for position in Cursor(len(store), shuffle=True, seed=1).take(10_000):
        assert store[position].values["input"]
    drawn = time.perf_counter()
    return {
        "rows": rows,
        "file_mib": round(path.stat().st_size / 1024**2, 1),
        "scan_seconds": round(scanned - started, 2),
        "draw_microseconds_per_row": round((drawn - scanned) * 100, 1),
        "memory_before_mib": round(before, 1),
        "memory_after_mib": round(peak(), 1),
    }


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as scratch:
        print(json.dumps(measure(count, Path(scratch))))
