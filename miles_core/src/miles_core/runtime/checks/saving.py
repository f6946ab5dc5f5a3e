"""``--async-save``: a backend that can give its state to a thread."""

from __future__ import annotations

from miles_core.config import CheckpointOptions
from miles_core.runtime.checks.report import Report

CAPABILITY = "async_save"


def check_saving(report: Report) -> None:
    """Check ``--async-save`` against the backend."""
    options, backend = report.peek(CheckpointOptions), report.selection.backend
    if not options.async_save or options.save is None or backend is None or CAPABILITY in backend.capabilities:
        return
    said = report.said(CheckpointOptions, "async_save")
    why = f"backend {backend.name} does not hold its state apart from training (capability {CAPABILITY})"
    report.error("M476", f"{said} cannot be used", owner=f"backend {backend.name}", why=why, fix="leave the option out")
