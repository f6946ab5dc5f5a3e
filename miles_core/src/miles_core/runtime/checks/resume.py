"""``--load``: which run state to go on from, and whether it is of this model."""

from __future__ import annotations

from pathlib import Path

from miles_core.config import CheckpointOptions, DataOptions
from miles_core.errors import UsageError
from miles_core.runtime.checks.checkpoint import CONFIG_FILE
from miles_core.runtime.checks.report import Report
from miles_core.state import SavedState, StateStore
from miles_core.state.store import META


def check_resume(report: Report, checkpoint: Path | None) -> SavedState | None:
    """The newest whole run state of ``--load``; None for a fresh start."""
    options = report.peek(CheckpointOptions)
    if options.load is None:
        _warn_of_earlier_states(report, options.save)
        return None
    report.use(CheckpointOptions, "load")
    said = report.said(CheckpointOptions, "load")
    root = Path(options.load).expanduser()
    if root.exists() and not root.is_dir():
        report.error("M336", f"{said} cannot be used", owner=str(root), why="it is a file", fix="give the folder of --save")
        return None
    if (root / META).is_file():
        why, fix = "it is one run state", f"give the folder that holds it: {root.parent}"
        report.error("M336", f"{said} cannot be used", owner=str(root), why=why, fix=fix)
        return None
    state = StateStore(root).latest()
    if state is None:
        report.warn(f"{said} has no run state: the run starts fresh")
        return None
    for damaged in state.passed_over:
        report.warn(f"{said}: passed over {damaged}")
    if checkpoint is not None and (checkpoint / CONFIG_FILE).is_file():
        try:
            state.check_model(checkpoint)
        except UsageError as error:
            report.errors.append(error)
    total = report.peek(DataOptions).num_rollout
    if total is not None and state.rollout_id + 1 >= total:
        report.warn(f"{state.path} has finished rollout {state.rollout_id} of {total}: there is nothing left to train")
    return state


def _warn_of_earlier_states(report: Report, save: str | None) -> None:
    if save is None or not Path(save).expanduser().is_dir():
        return
    state = StateStore(Path(save).expanduser()).latest()
    if state is not None:
        said = report.said(CheckpointOptions, "save")
        report.warn(f"{said} has run states of an earlier run, up to rollout {state.rollout_id}: --load {save} would go on from it")
