"""What one rank of training computed for the tokens of a rollout, in a file.

One ``.npz`` archive (:mod:`miles_core.debug.archive`): the rank's rows as columns (``row <name>``, see
:mod:`miles_core.training.rows`), and a float32 array ``[N]`` for each per-token field over the rows' N response tokens, end to end
in the order of the rows: ``mask``, ``advantages``, ``returns``, ``log_probs``, ``ref_log_probs``, ``rollout_log_probs``, ... as far
as the run computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from miles_core.debug.archive import read_archive, unreadable, write_archive
from miles_core.training.rows import RankBatch, StepCount, from_columns, to_columns

KIND = "training data"
ROW = "row "


@dataclass(frozen=True)
class SavedTraining:
    """One rank's share of a rollout: its rows, and per-token arrays, ``[N]``, by name."""

    rank: int
    batch: RankBatch
    fields: dict[str, np.ndarray]

    def of_row(self, name: str, row: int) -> np.ndarray:
        """One row's values of a field, ``[R]``."""
        ends = np.cumsum([each.response_length for each in self.batch.rows])
        return self.fields[name][ends[row] - self.batch.rows[row].response_length : ends[row]]


def write_training(path: Path, rank: int, batch: RankBatch, fields: Mapping[str, np.ndarray]) -> None:
    """Write one rank's share.

    Args:
        rank: among all ranks that train.
        fields: flat per-token arrays with one more entry than there are response tokens, as in the trainer, ``[N + 1]``.
    """
    arrays = {f"{ROW}{name}": values for name, values in to_columns(batch.rows).items()}
    arrays |= {name: values[:-1] for name, values in fields.items()}
    document = {
        "rollout_id": batch.rollout_id,
        "rank": rank,
        "steps": batch.steps,
        "counts": [[count.samples, count.tokens] for count in batch.counts],
    }
    write_archive(path, KIND, document, arrays)


def read_training(path: Path) -> SavedTraining:
    """Read what :func:`write_training` wrote.

    Raises:
        RunError: it cannot be read (M372).
    """
    document, arrays = read_archive(path, KIND)
    try:
        columns = {name.removeprefix(ROW): values for name, values in arrays.items() if name.startswith(ROW)}
        counts = tuple(StepCount(int(samples), float(tokens)) for samples, tokens in document["counts"])
        steps = tuple(tuple(rows) for rows in document["steps"])
        batch = from_columns(int(document["rollout_id"]), steps, counts, columns)
        fields = {name: values for name, values in arrays.items() if not name.startswith(ROW)}
        return SavedTraining(int(document["rank"]), batch, fields)
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(path, KIND, f"{type(error).__name__}: {error}") from error
