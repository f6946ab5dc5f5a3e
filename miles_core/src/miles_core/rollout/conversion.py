"""Samples to training rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miles_core.protocols import Advantage
from miles_core.samples import Sample, Status
from miles_core.training.rows import TrainRow


def to_rows(samples: Sequence[Sample], advantage: Advantage | None) -> list[TrainRow]:
    """One row per sample, in order.

    Rewards are shaped over the samples that could be graded; one that could not has an all-zero mask, and still counts in the
    batch. A response without a token, which leaves nothing to train on, is represented by the prompt's last token, masked.
    """
    graded = [s for s in samples if s.reward is not None]
    shaped: dict[int, float] = {}
    if advantage is not None and graded:
        values = advantage.shape_rewards([s.reward for s in graded if s.reward is not None], [s.group_index for s in graded])
        shaped = {s.index: value for s, value in zip(graded, values, strict=True)}
    return [_row(sample, shaped.get(sample.index, 0.0)) for sample in samples]


def _row(sample: Sample, reward: float) -> TrainRow:
    empty = sample.response_length == 0
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
        raw_reward=float("nan") if sample.reward is None else sample.reward,
        rollout_log_probs=log_probs,
        truncated=sample.status is Status.TRUNCATED,
        version=min((version for version, _ in sample.weight_versions), default=-1),
    )


def _mask(sample: Sample) -> np.ndarray:
    if sample.loss_mask is None and not (sample.removed or sample.failed):
        return np.ones(sample.response_length, np.float32)
    return np.asarray(sample.train_mask(), np.float32)
