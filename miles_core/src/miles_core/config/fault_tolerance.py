"""What becomes of a run when an engine dies or hangs."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option

RESTART_SECONDS = 1800.0
"""Longest that an engine may take to come up again; so long do its requests wait where no other engine can answer them."""


@dataclass(frozen=True)
class FaultToleranceOptions:
    """Fault tolerance"""

    use_fault_tolerance: bool = option(
        False,
        flag="--use-fault-tolerance",
        help="Start an engine that dies or hangs again, with the weights that are served, and have other engines answer its "
        "requests. Engines are asked for a sign of life now and then.",
    )
    rollout_health_check_interval: float = option(
        30.0, flag="--rollout-health-check-interval", help="Seconds from an engine's sign of life to the question for the next."
    )
    rollout_health_check_timeout: float = option(
        30.0, flag="--rollout-health-check-timeout", help="Seconds that an engine may take to give one before it is started again."
    )
    rollout_health_check_first_wait: float = option(
        0.0,
        flag="--rollout-health-check-first-wait",
        help="Seconds from an engine's start to the first question, for an engine that compiles at first.",
    )
