"""``--true-on-policy-mode``: whether backend, engine, device and model can keep its promise."""

from __future__ import annotations

import json
from pathlib import Path

from miles_core.config import ClusterOptions, RolloutOptions, SamplingOptions, TrainingOptions
from miles_core.numerics import obstacle
from miles_core.runtime.checks.checkpoint import CONFIG_FILE
from miles_core.runtime.checks.report import Report

CAPABILITY = "true_on_policy"


def check_true_on_policy(report: Report) -> None:
    """Check the mode against what was chosen. The device must be derived already."""
    if not report.peek(TrainingOptions).true_on_policy_mode:
        return
    said = report.said(TrainingOptions, "true_on_policy_mode")
    if report.supervised:
        report.warn(f"{said} has no effect: nothing that this run trains on was sampled by an engine")
        return
    fix = "leave --true-on-policy-mode out"
    for ref in (report.selection.backend, report.selection.engine):
        if ref is not None and CAPABILITY not in ref.capabilities:
            report.error(
                "M278",
                f"{said} cannot be had with {ref.kind} {ref.name}",
                owner=f"{ref.distribution} {ref.version}",
                why="its log-probs depend on what else is in a batch",
                fix=f"{fix}, or take backend fsdp with engine transformers",
            )
    device = report.peek(ClusterOptions).device
    if device == "cuda":
        why = "only computation on CPUs is known to be the same in every batch"
        report.error("M278", f"{said} does not run on {device}", why=why, fix=f"{fix}, or take --device cpu")
    sampling = report.peek(SamplingOptions)
    if sampling.partial_rollout and not sampling.mask_offpolicy_in_partial_rollout:
        why = "it trains on tokens that earlier weights made"
        what = f"{report.said(SamplingOptions, 'partial_rollout')} contradicts {said}"
        report.error("M278", what, why=why, fix="add --mask-offpolicy-in-partial-rollout, or leave one of them out")
    checkpoint = report.peek(RolloutOptions).hf_checkpoint
    if checkpoint is not None:
        _check_model(report, Path(checkpoint).expanduser(), said, fix)


def _check_model(report: Report, folder: Path, said: str, fix: str) -> None:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # check_checkpoint has said so
    why = obstacle(config) if isinstance(config, dict) else ""
    if why:
        report.error("M279", f"{folder.name} cannot run in {said}", owner=str(folder / CONFIG_FILE), why=why, fix=fix)
