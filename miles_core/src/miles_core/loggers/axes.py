"""The three axes of metrics: optimizer steps, rollouts, and rollouts before an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TRAIN, ROLLOUT, EVAL = "train", "rollout", "eval"
AXES = (TRAIN, ROLLOUT, EVAL)


def axis_of(metric: str) -> str:
    """The axis of a metric: ``train/`` and ``eval/`` have their own, everything else is of rollouts."""
    front = metric.partition("/")[0]
    return front if front in (TRAIN, EVAL) else ROLLOUT


def by_axis(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The metrics apart by axis; an axis without any is absent."""
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        found.setdefault(axis_of(name), {})[name] = value
    return found


def row_axis(names: Iterable[str]) -> str:
    """The axis of a row of ``metrics.jsonl``; rows have metrics of one axis."""
    return next((axis_of(name) for name in names if "/" in name), ROLLOUT)


def first_steps(first: int, total: int, steps_per_rollout: int, eval_interval: int | None) -> dict[str, int]:
    """The first step of each axis that a run will log.

    Args:
        first: the rollout that it begins with.
        total: rollouts of the run.
        steps_per_rollout: optimizer steps.
        eval_interval: rollouts between evaluations, None without any. An evaluation that was due when the run state was saved
            is made again.
    """
    again = eval_interval is not None and (first % eval_interval == 0 or first == total)
    return {TRAIN: first * steps_per_rollout, ROLLOUT: first, EVAL: first if again else first + 1}
