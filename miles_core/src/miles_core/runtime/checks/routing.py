"""Routing replay: a mixture of experts, a backend that replays, and an engine that reports where the routes are its own."""

from __future__ import annotations

import json
from pathlib import Path

from miles_core.config import RolloutOptions, RoutingOptions
from miles_core.runtime.checks.checkpoint import CONFIG_FILE
from miles_core.runtime.checks.report import Report
from miles_core.runtime.experts import read_experts

REPLAYS = "routing_replay"
"""Capability of a backend that sends tokens to given experts."""
REPORTS = "routed_experts"
"""Capability of an engine that says which experts it sent tokens to."""


def check_routing(report: Report) -> None:
    """Check ``--use-routing-replay`` and ``--use-rollout-routing-replay``."""
    options, selection = report.peek(RoutingOptions), report.selection
    given = [name for name in ("use_routing_replay", "use_rollout_routing_replay") if getattr(options, name)]
    if not given:
        return
    if len(given) == 2:
        first, second = (report.said(RoutingOptions, name) for name in given)
        report.warn(f"{first} has no effect: {second} takes its place")
    name = given[-1]
    said = report.said(RoutingOptions, name)
    if report.supervised:
        why = "responses that come from the data have no pass and no engine that could have routed them"
        report.error("M275", f"{said} cannot be used", why=why, fix="leave the option out")
        return
    backend, engine = selection.backend, selection.engine
    if backend is not None and REPLAYS not in backend.capabilities:
        why = f"backend {backend.name} does not replay routes (capability {REPLAYS})"
        fix = "use --backend fsdp, or leave the option out"
        report.error("M275", f"{said} cannot be used", owner=f"backend {backend.name}", why=why, fix=fix)
    if options.use_rollout_routing_replay and engine is not None and REPORTS not in engine.capabilities:
        why = f"engine {engine.name} does not report routed experts (capability {REPORTS})"
        fix = "use --engine transformers, or --use-routing-replay"
        report.error("M277", f"{said} cannot be used", owner=f"engine {engine.name}", why=why, fix=fix)
    _check_model(report, said)


def _check_model(report: Report, said: str) -> None:
    checkpoint = report.peek(RolloutOptions).hf_checkpoint
    if checkpoint is None:
        return
    file = Path(checkpoint).expanduser() / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # check_checkpoint has said so
    if isinstance(config, dict) and read_experts(config) is None:
        why = f"{config.get('model_type', 'the model')} has no num_experts"
        report.error("M276", f"{said} has nothing to replay", owner=str(file), why=why, fix="leave the option out")
