"""The few metrics that a person wants to see, and how to write numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

REWARD = "rollout/raw_reward"
LOSS = "train/loss"
VALUE_LOSS = "train/critic-value_loss"
EXPLAINED_VARIANCE = "train/critic-explained_variance"
SAMPLES = "rollout/generated_samples"
STEP_SECONDS = "perf/step_time"
RESPONSE_LENGTH = ("rollout/response_len/mean", "rollout/response_lengths")
_DERIVED = ("-truncated_ratio", "-pass@", "-failed")


def response_length(metrics: Mapping[str, float]) -> float | None:
    """Mean tokens of a response."""
    return next((metrics[name] for name in RESPONSE_LENGTH if name in metrics), None)


def evaluations(metrics: Mapping[str, float]) -> dict[str, float]:
    """Mean reward by evaluation set, without what else was measured on it."""
    found = {}
    for name, value in metrics.items():
        axis, _, dataset = name.partition("/")
        if axis == "eval" and "/" not in dataset and not any(part in dataset for part in _DERIVED):
            found[dataset] = value
    return found


def short(value: float) -> str:
    """Four significant places at most: ``0.712``, ``1.2e-05``, ``3.4k``."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size >= 1e6:
        return f"{value / 1e6:.1f}M"
    if size >= 1e4:
        return f"{value / 1e3:.1f}k"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1e-3 or size == 0:
        return f"{value:.3f}"
    return f"{value:.1e}"


def clock(seconds: float) -> str:
    """``0:07``, ``12:05``, ``3:04:05``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def duration(seconds: float) -> str:
    """``0.84 s``, ``47 s``, ``2 min 5 s``, ``3 h 4 min``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
