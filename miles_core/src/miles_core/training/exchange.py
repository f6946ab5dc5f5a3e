"""Per-token numbers of samples on their way between actor and critic, whose ranks hold different samples. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from miles_core.errors import RunError
from miles_core.training.rows import RankBatch, TrainRow
from miles_core.training.table import RowTable


@dataclass(frozen=True)
class TokenArrays:
    """What one rank knows about its samples.

    Attributes:
        indices: of the samples, int64, ``[B]``.
        lengths: their response tokens, int64, ``[B]``.
        flat: the numbers, sample after sample, float32, ``[N]``.
    """

    indices: np.ndarray
    lengths: np.ndarray
    flat: np.ndarray

    @classmethod
    def of(cls, table: RowTable, flat: np.ndarray) -> TokenArrays:
        """Numbers of a table's rows, ``[N + 1]``."""
        indices = np.array([row.index for row in table.rows], np.int64)
        return cls(indices, table.response_lengths[:-1], np.ascontiguousarray(flat[:-1], np.float32))


class ByIndex:
    """The numbers of all ranks, by sample.

    Args:
        parts: of each rank. Ranks of a model-parallel group hold the same samples and say the same.
        name: of the numbers, for errors.
        source: who made them.
    """

    def __init__(self, parts: Iterable[TokenArrays], *, name: str, source: str) -> None:
        self.name = name
        self._source = source
        self._found: dict[int, np.ndarray] = {}
        for part in parts:
            self._found.update(zip(part.indices.tolist(), np.split(part.flat, np.cumsum(part.lengths)[:-1]), strict=True))

    def of(self, row: TrainRow) -> np.ndarray:
        """The numbers of one row, float32, ``[R]``.

        Raises:
            RunError: there are none, or of another number of tokens (M420).
        """
        found = self._found.get(row.index)
        if found is None or len(found) != row.response_length:
            there = (
                f"those of {len(self._found)} other samples" if found is None else f"{len(found)} for {row.response_length} tokens"
            )
            raise RunError(
                "M420",
                f"sample {row.index} has no {self.name}",
                owner="miles-core",
                why=f"the {self._source} gave {there}",
                sample=row.index,
            )
        return found

    def flat(self, rows: Sequence[TrainRow]) -> np.ndarray:
        """The numbers of the rows end to end, and a 0 for the filler row, float32, ``[N + 1]``."""
        return np.concatenate([*(self.of(row) for row in rows), np.zeros(1, np.float32)]).astype(np.float32)

    def attached(self, batch: RankBatch) -> RankBatch:
        """The batch with these numbers among the ``extras`` of its rows."""
        rows = tuple(dataclasses.replace(row, extras={**row.extras, self.name: self.of(row)}) for row in batch.rows)
        return dataclasses.replace(batch, rows=rows)


def critic_rows(rows: Iterable[TrainRow]) -> list[TrainRow]:
    """The rows without what a critic does not look at."""
    return [dataclasses.replace(row, rollout_log_probs=None, extras={}, routes=None) for row in rows]
