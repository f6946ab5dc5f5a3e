"""What the rollout manager hands to the training ranks. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

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
