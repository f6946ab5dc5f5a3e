"""What the rollout manager hands to the training ranks. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TrainRow:
    """One sample, ready to train on.

    Attributes:
        index, group: the sample's and its group's running numbers.
        tokens: prompt and response ids, int32, ``[T]``.
        response_length: response tokens R; ``R >= 1``.
        mask: float32, ``[R]``.
        reward: after the estimator's ``shape_rewards``; 0 for a failed sample, whose mask is all zero.
        raw_reward: as graded; NaN for a failed sample.
        rollout_log_probs: float32, ``[R]``, or None.
        version: oldest weight version that made a token of the response; -1 when no engine made any.
    """

    index: int
    group: int
    tokens: np.ndarray
    response_length: int
    mask: np.ndarray
    reward: float
    raw_reward: float
    rollout_log_probs: np.ndarray | None = None
    truncated: bool = False
    version: int = -1


@dataclass(frozen=True)
class StepCount:
    """Denominators of one optimizer step, over all ranks: samples, and sum of ``max(mask tokens, 1)`` over samples."""

    samples: int
    tokens: float


@dataclass(frozen=True)
class RankBatch:
    """The rows of one data-parallel rank for one rollout.

    ``steps[s]`` are positions in ``rows`` that optimizer step ``s`` trains on; ``counts[s]`` are that step's global counts.
    """

    rollout_id: int
    rows: tuple[TrainRow, ...]
    steps: tuple[tuple[int, ...], ...]
    counts: tuple[StepCount, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        # A few large arrays travel between processes many times faster than thousands of small ones.
        return _joined, (self.rollout_id, self.steps, self.counts, _columns(self.rows))


def _columns(rows: Sequence[TrainRow]) -> dict[str, np.ndarray]:
    """The rows as arrays: one entry per row, or all rows' tokens end to end."""
    with_log_probs = [row.rollout_log_probs for row in rows if row.rollout_log_probs is not None]
    return {
        "index": np.array([row.index for row in rows], np.int64),
        "group": np.array([row.group for row in rows], np.int64),
        "lengths": np.array([len(row.tokens) for row in rows], np.int64),
        "response_lengths": np.array([row.response_length for row in rows], np.int64),
        "rewards": np.array([row.reward for row in rows], np.float64),
        "raw_rewards": np.array([row.raw_reward for row in rows], np.float64),
        "truncated": np.array([row.truncated for row in rows], np.bool_),
        "versions": np.array([row.version for row in rows], np.int64),
        "has_log_probs": np.array([row.rollout_log_probs is not None for row in rows], np.bool_),
        "tokens": np.concatenate([row.tokens for row in rows]) if rows else np.empty(0, np.int32),
        "mask": np.concatenate([row.mask for row in rows]) if rows else np.empty(0, np.float32),
        "log_probs": np.concatenate(with_log_probs) if with_log_probs else np.empty(0, np.float32),
    }


def _joined(
    rollout_id: int, steps: tuple[tuple[int, ...], ...], counts: tuple[StepCount, ...], columns: dict[str, np.ndarray]
) -> RankBatch:
    tokens = np.split(columns["tokens"], np.cumsum(columns["lengths"])[:-1])
    mask = np.split(columns["mask"], np.cumsum(columns["response_lengths"])[:-1])
    with_log_probs = columns["response_lengths"][columns["has_log_probs"]]
    log_probs = iter(np.split(columns["log_probs"], np.cumsum(with_log_probs)[:-1]))
    rows = tuple(
        TrainRow(
            index=int(columns["index"][i]),
            group=int(columns["group"][i]),
            tokens=tokens[i],
            response_length=int(columns["response_lengths"][i]),
            mask=mask[i],
            reward=float(columns["rewards"][i]),
            raw_reward=float(columns["raw_rewards"][i]),
            rollout_log_probs=next(log_probs) if columns["has_log_probs"][i] else None,
            truncated=bool(columns["truncated"][i]),
            version=int(columns["versions"][i]),
        )
        for i in range(len(columns["index"]))
    )
    return RankBatch(rollout_id, rows, steps, counts)
