"""What the rollout manager hands to the training ranks. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ROLLOUT = "log_probs"
EXTRA = "extra "
ROUTES = "routes"
"""Names of columns."""


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
        extras: further per-token arrays, float32, ``[R]`` each, by field name of ``AdvantageInputs`` or ``LossInputs``, such as
            ``teacher_log_probs``. One that is needed may be absent only where the mask is all zero.
        routes: the experts that the engine sent each token to, int16, ``[T, layers, top_k]``, see
            :class:`miles_core.training.routing.Routes`; None unless ``--use-rollout-routing-replay``.
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
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    routes: np.ndarray | None = None


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
        return from_columns, (self.rollout_id, self.steps, self.counts, to_columns(self.rows))


def to_columns(rows: Sequence[TrainRow]) -> dict[str, np.ndarray]:
    """The rows as arrays: one entry per row, or all rows' tokens end to end."""
    columns = {
        "index": np.array([row.index for row in rows], np.int64),
        "group": np.array([row.group for row in rows], np.int64),
        "lengths": np.array([len(row.tokens) for row in rows], np.int64),
        "response_lengths": np.array([row.response_length for row in rows], np.int64),
        "rewards": np.array([row.reward for row in rows], np.float64),
        "raw_rewards": np.array([row.raw_reward for row in rows], np.float64),
        "truncated": np.array([row.truncated for row in rows], np.bool_),
        "versions": np.array([row.version for row in rows], np.int64),
        "tokens": np.concatenate([row.tokens for row in rows]) if rows else np.empty(0, np.int32),
        "mask": np.concatenate([row.mask for row in rows]) if rows else np.empty(0, np.float32),
    }
    columns |= _column(ROLLOUT, [row.rollout_log_probs for row in rows])
    for name in sorted({name for row in rows for name in row.extras}):
        columns |= _column(f"{EXTRA}{name}", [row.extras.get(name) for row in rows])
    routed = [row.routes for row in rows if row.routes is not None]
    if routed:
        columns[ROUTES] = np.concatenate(routed)
        columns[f"has {ROUTES}"] = np.array([row.routes is not None for row in rows], np.bool_)
    return columns


def _column(name: str, arrays: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    """A per-token array that some rows lack: those that have it, end to end, and which rows they are of."""
    present = [array for array in arrays if array is not None]
    return {
        name: np.concatenate(present).astype(np.float32, copy=False) if present else np.empty(0, np.float32),
        f"has {name}": np.array([array is not None for array in arrays], np.bool_),
    }


def _arrays(columns: Mapping[str, np.ndarray], name: str, lengths: str = "response_lengths") -> list[np.ndarray | None]:
    """Undoes :func:`_column`."""
    has = columns[f"has {name}"]
    present = iter(np.split(columns[name], np.cumsum(columns[lengths][has])[:-1]))
    return [next(present) if there else None for there in has]


def from_columns(
    rollout_id: int, steps: tuple[tuple[int, ...], ...], counts: tuple[StepCount, ...], columns: Mapping[str, np.ndarray]
) -> RankBatch:
    """Undoes :func:`to_columns`."""
    tokens = np.split(columns["tokens"], np.cumsum(columns["lengths"])[:-1])
    mask = np.split(columns["mask"], np.cumsum(columns["response_lengths"])[:-1])
    log_probs = _arrays(columns, ROLLOUT)
    routes = _arrays(columns, ROUTES, "lengths") if ROUTES in columns else [None] * len(columns["index"])
    extras = {name.removeprefix(EXTRA): _arrays(columns, name) for name in columns if name.startswith(EXTRA)}
    rows = tuple(
        TrainRow(
            index=int(columns["index"][i]),
            group=int(columns["group"][i]),
            tokens=tokens[i],
            response_length=int(columns["response_lengths"][i]),
            mask=mask[i],
            reward=float(columns["rewards"][i]),
            raw_reward=float(columns["raw_rewards"][i]),
            rollout_log_probs=log_probs[i],
            truncated=bool(columns["truncated"][i]),
            version=int(columns["versions"][i]),
            extras={name: array for name, arrays in extras.items() if (array := arrays[i]) is not None},
            routes=routes[i],
        )
        for i in range(len(columns["index"]))
    )
    return RankBatch(rollout_id, rows, steps, counts)
