"""Memory and time of a data file of many rows: looked through, and then read in a shuffled order.

    python benchmarks/large_data.py

Each size in a fresh process, so that the largest resident memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

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
    for row, _ in store.scan():
        store.keep(row)
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


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--one", action="store_true", help="one size in this process, figures as JSON")
    parser.add_argument("--folder", help="where to write the files; a gibibyte of space")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            print(json.dumps(measure(args.rows[0], Path(scratch))))
        return
    figures = {}
    for rows in args.rows:
        place = [] if args.folder is None else ["--folder", args.folder]
        command = [sys.executable, __file__, "--one", "--rows", str(rows), *place]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[f"{rows} rows"] = json.loads(done.stdout.splitlines()[-1])
    record.save(
        "large_data", figures, "A JSON Lines file is looked through, and ten thousand rows are drawn in a shuffled order.", args.out
    )


if __name__ == "__main__":
    main()
