"""Whether the engines of a run can be started again, and the options that mean nothing where they are not."""

from __future__ import annotations

from miles_core.config import ClusterOptions, DebugOptions, FaultToleranceOptions
from miles_core.runtime.checks.report import Report

COMPANIONS = ("rollout_health_check_interval", "rollout_health_check_timeout", "rollout_health_check_first_wait")


def check_fault_tolerance(report: Report) -> None:
    """Check ``--use-fault-tolerance``, and warn of what has no effect."""
    options = report.peek(FaultToleranceOptions)
    said = report.said(FaultToleranceOptions, "use_fault_tolerance")
    if not options.use_fault_tolerance:
        why = "--use-fault-tolerance is not given"
    elif not report.generates or report.peek(DebugOptions).load_debug_rollout_data is not None:
        why = "the run has no engine"
        report.warn(f"{said} has no effect: {why}")
    else:
        why = ""
    if report.peek(ClusterOptions).rollout_external and not why:
        fix = "leave one of the two out, and have whoever started the servers watch them"
        report.error("M530", f"{said} does not go with --rollout-external", why="the run cannot start those servers", fix=fix)
    for name in COMPANIONS if why else ():
        if report.chosen(FaultToleranceOptions, name):
            report.warn(f"{report.said(FaultToleranceOptions, name)} has no effect: {why}")


def restarts_engines(report: Report) -> bool:
    """Whether engines of the run are started again when they die."""
    return report.peek(FaultToleranceOptions).use_fault_tolerance and report.generates
