"""Samples to training rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from miles_core.protocols import Advantage
from miles_core.rollout.hooks import RewardPostProcess
from miles_core.rollout.routing import whole_routes
from miles_core.samples import Sample, Status
from miles_core.training.rows import TrainRow


def to_rows(
    samples: Sequence[Sample],
    advantage: Advantage | None,
    *,
    penalty: Callable[[Sample], float] | None = None,
    post_process: RewardPostProcess | None = None,
) -> list[TrainRow]:
    """One row per sample, in order.

    Rewards are shaped over the samples that could be graded; one that could not has an all-zero mask, and still counts in the
    batch. A response without a token, which leaves nothing to train on, is represented by the prompt's last token, masked.

    Args:
        penalty: added to each reward before the estimator shapes them.
        post_process: what ``--custom-reward-post-process-path`` names, in place of the estimator.
    """
    graded = [s for s in samples if s.reward is not None]
    raw = [s.reward for s in graded if s.reward is not None]
    shaped = [0.0] * len(graded)
    if post_process is not None and graded:
        raw, shaped = post_process(graded)
    elif advantage is not None and graded:
        rewards = raw if penalty is None else [r + penalty(s) for r, s in zip(raw, graded, strict=True)]
        shaped = advantage.shape_rewards(rewards, [s.group_index for s in graded])
    found = {s.index: pair for s, pair in zip(graded, zip(raw, shaped, strict=True), strict=True)}
    return [_row(sample, *found.get(sample.index, (math.nan, 0.0))) for sample in samples]


def _row(sample: Sample, raw_reward: float, reward: float) -> TrainRow:
    empty = sample.response_length == 0
    extras = {}
    if sample.teacher_log_probs is not None and not empty:
        extras["teacher_log_probs"] = np.asarray(sample.teacher_log_probs, np.float32)
    log_probs: np.ndarray | None = None
    if sample.rollout_log_probs is not None and not empty:
        log_probs = np.asarray(sample.rollout_log_probs, np.float32)
    elif empty:
        log_probs = np.zeros(1, np.float32)
    return TrainRow(
        index=sample.index,
        group=sample.group_index,
        tokens=np.asarray(sample.tokens, np.int32),
        response_length=1 if empty else sample.response_length,
        mask=np.zeros(1, np.float32) if empty else _mask(sample),
        reward=reward,
        raw_reward=raw_reward,
        rollout_log_probs=log_probs,
        truncated=sample.status is Status.TRUNCATED,
        version=min((version for version, _ in sample.weight_versions), default=-1),
        extras=extras,
        routes=whole_routes(sample),
    )


def _mask(sample: Sample) -> np.ndarray:
    if sample.loss_mask is None and not (sample.removed or sample.failed):
        return np.ones(sample.response_length, np.float32)
    return np.asarray(sample.train_mask(), np.float32)
