"""The logger ``console``: one line per rollout, and one per evaluation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from miles_core.loggers.figures import (
    EXPLAINED_VARIANCE,
    LOSS,
    REWARD,
    STEP_SECONDS,
    VALUE_LOSS,
    evaluations,
    response_length,
    short,
)

if TYPE_CHECKING:
    from miles_core.options import Config

_TRAIN = (
    (LOSS, "loss"),
    ("train/entropy_loss", "entropy"),
    ("train/ppo_kl", "kl"),
    ("train/grad_norm", "grad"),
    (VALUE_LOSS, "value loss"),
    (EXPLAINED_VARIANCE, "explained"),
    ("train/train_rollout_logprob_abs_diff", "|dlogp|"),
)
_TIMES = (
    ("perf/rollout_phase_time", "generate"),
    ("perf/train_time", "train"),
    ("perf/update_weights_time", "publish"),
    ("perf/save_model_time", "save"),
)


class ConsoleLogger:
    """Writes to standard output.

    Metrics of optimizer steps (``train/``) come before those of the rollout that they belong to: the last ones are kept and shown
    on the rollout's line.
    """

    def __init__(self, config: Config) -> None:
        self._train: dict[str, float] = {}

    def start(self, run_dir: str, settings: Mapping[str, object], first: Mapping[str, int]) -> None:
        """Say where the run writes."""
        self._write(f"run folder {run_dir}")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write a line, when the metrics are of a rollout or an evaluation."""
        self._train.update({name: value for name, value in metrics.items() if name.startswith("train/")})
        found = evaluations(metrics)
        if found:
            scores = "  ".join(f"{name} {short(value)}" for name, value in found.items())
            self._write(f"evaluation after {step} rollouts  {scores}")
        if STEP_SECONDS in metrics:
            self._write(rollout_line(step, {**self._train, **metrics}))
            self._train = {}

    def close(self) -> None:
        """Nothing is held open."""

    def _write(self, line: str) -> None:
        # Looked up at every call: a live display puts itself in the place of standard output, to draw lines above itself.
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def rollout_line(rollout_id: int, metrics: Mapping[str, float]) -> str:
    """The numbers of one rollout that matter."""
    parts = [f"rollout {rollout_id:4d}"]
    if REWARD in metrics:
        parts.append(f"reward {metrics[REWARD]:.3f}")
    parts += [f"{label} {short(metrics[name])}" for name, label in _TRAIN if name in metrics]
    length = response_length(metrics)
    if length is not None:
        parts.append(f"length {length:.1f}")
    times = [f"{label} {metrics[name]:.2f}" for name, label in _TIMES if metrics.get(name)]
    parts.append(f"{metrics[STEP_SECONDS]:.2f} s" + (f" ({', '.join(times)})" if times else ""))
    return "  ".join(parts)
