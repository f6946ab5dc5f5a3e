"""The rows of one data-parallel rank as flat arrays, made once a rollout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miles_core.errors import RunError
from miles_core.training.rows import TrainRow

FILLER = -1
"""The row of an empty micro-batch: two tokens, one of them a masked response token."""


class RowTable:
    """B rows with N response tokens in all, and one filler row behind them, which index -1 reaches.

    Attributes:
        size, response_tokens: B and N.
        lengths: tokens of prompt and response, int64, ``[B + 1]``.
        response_lengths: int64, ``[B + 1]``.
        tokens: all rows' tokens end to end, int64.
        mask: all rows' masks end to end, float32, ``[N + 1]``.
        mask_sums: sum of each row's mask, float64, ``[B + 1]``.

    Raises:
        RunError: a row is malformed (M417).
    """

    def __init__(self, rows: Sequence[TrainRow]) -> None:
        for row in rows:
            _check(row)
        self.rows = tuple(rows)
        self.size = len(rows)
        self.lengths = np.array([len(row.tokens) for row in rows] + [2], np.int64)
        self.response_lengths = np.array([row.response_length for row in rows] + [1], np.int64)
        self.starts = _starts(self.lengths)
        self.response_starts = _starts(self.response_lengths)
        self.response_tokens = int(self.response_lengths.sum()) - 1
        self.tokens = np.concatenate([row.tokens for row in rows] + [np.zeros(2, np.int32)]).astype(np.int64)
        self.mask = np.concatenate([row.mask for row in rows] + [np.zeros(1, np.float32)]).astype(np.float32)
        self.mask_sums = np.add.reduceat(self.mask.astype(np.float64), self.response_starts)

    def token_index(self, rows: np.ndarray) -> np.ndarray:
        """Positions of the rows' tokens in :attr:`tokens`."""
        return ranges(self.starts[rows], self.lengths[rows])

    def response_index(self, rows: np.ndarray) -> np.ndarray:
        """Positions of the rows' response tokens in flat ``[N + 1]`` arrays."""
        return ranges(self.response_starts[rows], self.response_lengths[rows])

    def rollout_log_probs(self) -> np.ndarray | None:
        """The engine's log-probs, float32, ``[N + 1]``; NaN in rows without them, None when no row has them."""
        if all(row.rollout_log_probs is None for row in self.rows):
            return None
        parts = [
            np.full(row.response_length, np.nan, np.float32) if row.rollout_log_probs is None else row.rollout_log_probs
            for row in self.rows
        ]
        return np.concatenate([*parts, np.zeros(1, np.float32)]).astype(np.float32)

    def extra(self, name: str) -> np.ndarray:
        """A further per-token array that the rows bring, float32, ``[N + 1]``; 0 in fully masked rows without it.

        Raises:
            RunError: a row that is trained on has none, or one that is not finite where the mask is not 0 (M417).
        """
        parts = []
        for row in self.rows:
            values = row.extras.get(name)
            if values is None and row.mask.any():
                raise _error(row, f"it has no {name}")
            if values is not None and not np.isfinite(values[row.mask != 0]).all():
                raise _error(row, f"its {name} are not finite")
            # What the mask hides may be anything; left as it is, a NaN would survive the multiplication by 0.
            parts.append(np.zeros(row.response_length, np.float32) if values is None else np.where(np.isfinite(values), values, 0))
        return np.concatenate([*parts, np.zeros(1, np.float32)]).astype(np.float32)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``[start, start + length)`` of every entry, end to end, int64."""
    ends: np.ndarray = np.cumsum(lengths)
    shifts: np.ndarray = np.repeat(starts - (ends - lengths), lengths)
    shifts += np.arange(len(shifts))
    return shifts


def _starts(lengths: np.ndarray) -> np.ndarray:
    starts: np.ndarray = np.zeros_like(lengths)
    starts[1:] = np.cumsum(lengths)[:-1]
    return starts


def _check(row: TrainRow) -> None:
    total, response = len(row.tokens), row.response_length
    why = ""
    if response < 1:
        why = "it has no response token"
    elif response >= total:
        why = "it has no prompt token, so that nothing predicts its first response token"
    elif len(row.mask) != response:
        why = f"its mask has {len(row.mask)} entries for {response} response tokens"
    elif row.rollout_log_probs is not None and len(row.rollout_log_probs) != response:
        why = f"it has {len(row.rollout_log_probs)} rollout log-probs for {response} response tokens"
    else:
        odd = next((name for name, values in row.extras.items() if values.shape != (response,)), None)
        why = f"its {odd} have shape {list(row.extras[odd].shape)} for {response} response tokens" if odd is not None else ""
    if why:
        raise _error(row, why)


def _error(row: TrainRow, why: str) -> RunError:
    return RunError("M417", f"sample {row.index} cannot be trained on", owner="miles-core", why=why, sample=row.index)
