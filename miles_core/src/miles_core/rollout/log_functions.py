"""Functions that see what a rollout or an evaluation logs, and may log in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miles_core.rollout.hooks import Hook
from miles_core.samples import Sample


class RolloutLog(Hook):
    """``fn(rollout_id, samples, metrics)`` or ``fn(rollout_id, args, samples, rollout_extra_metrics, rollout_time)``."""

    flag = "--custom-rollout-log-function-path"

    def __call__(self, rollout_id: int, samples: Sequence[Sample], metrics: dict[str, float], seconds: float) -> dict[str, float]:
        """The metrics that core logs of a rollout: what the function left in the dict, none when it answers true."""
        arguments = (*self._middle, list(samples), metrics, *((seconds,) if self._middle else ()))
        return {} if self.call(rollout_id, *arguments) else numbers(metrics, self)


class EvaluationLog(Hook):
    """``fn(rollout_id, data, metrics)`` or ``fn(rollout_id, args, data, extra_metrics)``."""

    flag = "--custom-eval-rollout-log-function-path"

    def __call__(self, rollout_id: int, data: Mapping[str, Any], metrics: dict[str, float]) -> dict[str, float]:
        """The metrics that core logs of an evaluation: what the function left in the dict, none when it answers true."""
        return {} if self.call(rollout_id, *self._middle, dict(data), metrics) else numbers(metrics, self)


def numbers(metrics: Mapping[str, Any], hook: Hook) -> dict[str, float]:
    """Metrics as a function left or made them.

    Raises:
        RunError: one is no number (M407).
    """
    found = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise hook.error(f"made a metric {name!r} that is {type(value).__name__}", "log numbers") from error
    return found
