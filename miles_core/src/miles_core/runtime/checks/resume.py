"""``--load``: which run state to go on from, and whether it is of this model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miles_core.config import CheckpointOptions, DataOptions
from miles_core.runtime.checks.checkpoint import CONFIG_FILE
from miles_core.runtime.checks.report import Report

META_FILE = "meta.json"
POINTER_FILE = "latest"


@dataclass(frozen=True)
class FoundState:
    """A run state in a ``--load`` folder. ``meta`` is its ``meta.json``."""

    folder: Path
    meta: dict[str, Any]

    @property
    def rollout_id(self) -> int | None:
        """The last rollout that it contains."""
        value = self.meta.get("rollout_id")
        return value if isinstance(value, int) else None


def check_resume(report: Report, checkpoint: Path | None) -> FoundState | None:
    """The newest whole run state of ``--load``; None for a fresh start."""
    load = report.peek(CheckpointOptions).load
    if load is None:
        return None
    report.use(CheckpointOptions, "load")
    said = report.said(CheckpointOptions, "load")
    root = Path(load).expanduser()
    if root.exists() and not root.is_dir():
        report.error("M336", f"{said} cannot be used", owner=str(root), why="it is a file", fix="give the folder of --save")
        return None
    state = newest_state(root)
    if state is None:
        report.warn(f"{said} has no run state: the run starts fresh")
        return None
    _same_model(report, state, checkpoint, said)
    total = report.peek(DataOptions).num_rollout
    if state.rollout_id is not None and total is not None and state.rollout_id + 1 >= total:
        report.warn(f"{state.folder} has finished rollout {state.rollout_id} of {total}: there is nothing left to train")
    return state


def newest_state(root: Path) -> FoundState | None:
    """The state that ``latest`` names when it is whole, else the whole one with the highest rollout."""
    candidates = sorted((path for path in root.glob("step_*") if path.is_dir()), key=_order, reverse=True)
    if (root / META_FILE).is_file():
        candidates.insert(0, root)
    try:
        pointed = root / (root / POINTER_FILE).read_text(encoding="utf-8").strip()
        candidates.insert(0, pointed)
    except (OSError, UnicodeDecodeError):
        pass
    for folder in candidates:
        try:
            meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(meta, dict):
            return FoundState(folder, meta)
    return None


def _order(path: Path) -> tuple[int, str]:
    number = path.name.removeprefix("step_")
    return (int(number) if number.isdecimal() else -1, path.name)


def _same_model(report: Report, state: FoundState, checkpoint: Path | None, said: str) -> None:
    saved = state.meta.get("model_fingerprint")
    if checkpoint is None or saved is None:
        return
    try:
        here = hashlib.sha256((checkpoint / CONFIG_FILE).read_bytes()).hexdigest()
    except OSError:
        return
    if here != saved:
        report.error(
            "M337",
            f"{said} is the run state of another model",
            owner=str(state.folder),
            why=f"{checkpoint / CONFIG_FILE} differs from the one that the state was trained with",
            fix="give the --hf-checkpoint of that run, or another --load",
        )
