"""What the page of a run shows, as plain data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from miles_core.loggers.axes import row_axis
from miles_core.loggers.jsonl import FILE as METRICS
from miles_core.loggers.timeline import FILE as TIMELINE
from miles_core.report.runs import glance

POINTS = 1500
"""Points of a curve; of longer ones the page has the lowest and the highest value of every stretch."""
SPANS = 4000
"""Phases in the waterfall; of longer runs the page has the first and the last ones."""
TEXT = 20000
"""Characters of a prompt or a response."""
_NUMBER = re.compile(r"_(\d+)$")
_PLAIN = ("step", "time", "nonfinite")


def content(folder: Path, *, rollouts: int, samples: int) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
        folder: of the run.
        rollouts: whose samples are taken, evenly spread, the first and the last among them; the same of each evaluation set.
        samples: of each, and as many dropped ones.
    """
    run = glance(folder)
    facts = {**asdict(run), "name": folder.absolute().name, "path": str(folder.absolute()), "evaluations": dict(run.evaluations)}
    return {
        "run": facts,
        "curves": curves(folder / METRICS),
        "spans": spans(folder / TIMELINE),
        "samples": [each for path in sample_files(folder / "samples", rollouts) for each in _sample_file(path, samples)],
        "config": _text(folder / "config.yaml"),
        "lock": _text(folder / "plugins.lock.json"),
        "summary": _text(folder / "summary.txt"),
    }


def curves(path: Path) -> dict[str, dict[str, Any]]:
    """By metric: its axis, and points as two lists. The last row of a step counts; what is not finite is None."""
    found: dict[str, dict[int, float | None]] = {}
    axes: dict[str, str] = {}
    for row in _rows(path):
        step, axis = row.get("step"), row_axis(row)
        if not isinstance(step, int):
            continue
        for name, value in row.items():
            if name not in _PLAIN and (value is None or isinstance(value, int | float)):
                axes[name] = axis
                found.setdefault(name, {})[step] = float(value) if value is not None else None
    made = {}
    for name in sorted(found):
        xs, ys = thinned(sorted(found[name].items()))
        made[name] = {"axis": axes[name], "x": xs, "y": ys, "points": len(found[name])}
    return made


def thinned(points: Sequence[tuple[int, float | None]]) -> tuple[list[int], list[float | None]]:
    """At most about :data:`POINTS` points that keep every peak: of each stretch its lowest and highest, and both ends."""
    if len(points) > POINTS:
        size = math.ceil(2 * len(points) / POINTS)
        kept = {0, len(points) - 1}
        for begin in range(0, len(points), size):
            stretch = [i for i in range(begin, min(begin + size, len(points))) if points[i][1] is not None]
            if stretch:
                kept |= {min(stretch, key=lambda i: points[i][1] or 0.0), max(stretch, key=lambda i: points[i][1] or 0.0)}
        points = [points[i] for i in sorted(kept)]
    return [x for x, _ in points], [None if y is None else float(f"{y:.6g}") for _, y in points]


def spans(path: Path) -> list[list[Any]]:
    """Phases as ``[phase, rollout, start, seconds]``."""
    found = [
        [str(row["phase"]), int(row["rollout"]), float(row["start"]), float(row["seconds"])]
        for row in _rows(path)
        if {"phase", "rollout", "start", "seconds"} <= row.keys()
    ]
    return found if len(found) <= SPANS else [*found[: SPANS // 2], *found[-SPANS // 2 :]]


def sample_files(folder: Path, count: int) -> list[Path]:
    """Of the rollouts and of each evaluation set ``count`` files, evenly spread, in the order of their numbers."""
    kinds: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.glob("*.jsonl"):
        number = _NUMBER.search(path.stem)
        kinds.setdefault(path.stem[: number.start()] if number else path.stem, []).append((int(number[1]) if number else 0, path))
    chosen = []
    for kind in sorted(kinds, key=lambda kind: (kind != "rollout", kind)):
        files = [path for _, path in sorted(kinds[kind])]
        last = len(files) - 1
        picked = {round(i * last / (count - 1)) for i in range(count)} if count > 1 else {last}
        chosen += [files[i] for i in sorted(picked)]
    return chosen


def finite(value: Any) -> Any:
    """The same data without numbers that JSON lacks: they become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _sample_file(path: Path, count: int) -> Iterator[dict[str, Any]]:
    taken = {False: 0, True: 0}
    for row in _rows(path):
        lost = bool(row.get("dropped"))
        if taken[lost] < count:
            taken[lost] += 1
            yield {"file": path.stem, **{key: _short(value) for key, value in row.items()}}


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > TEXT:
        return f"{value[:TEXT]} ... ({len(value) - TEXT} more characters)"
    return value


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines; none when it is missing. What cannot be read is left out."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
    except OSError:
        return


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
