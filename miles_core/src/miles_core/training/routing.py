"""Routes: which experts each token of a rollout goes to, in every layer of a mixture of experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from miles_core.errors import RunError
from miles_core.training.batch import MicroBatch, ModelOutputs
from miles_core.training.table import RowTable, ranges

OWN_CHOICE = -1
"""In the place of an expert's number: the router chooses as if nothing were replayed."""

_OWNER = "miles-core"


class Routes:
    """The experts of every token of one rank's rollout, in host memory.

    Keyed by row, so that the passes that record and replay may divide the rows into micro-batches in different ways. Padding and
    the filler row have none: their routers choose by themselves, which nothing depends on.

    Args:
        table: the rank's rows.
        values: int16, ``[tokens of the table, layers, top_k]``; layers are all decoder layers of the model, and those without
            experts hold :data:`OWN_CHOICE`.
    """

    def __init__(self, table: RowTable, values: np.ndarray) -> None:
        assert values.dtype == np.int16
        assert len(values) == len(table.tokens)
        self._table = table
        self.values = values

    @classmethod
    def of_rollout(cls, table: RowTable) -> Routes:
        """The routes that the rows bring from the engine.

        Raises:
            RunError: a row that is trained on has none (M433), or rows disagree about layers and experts per token (M434).
        """
        given = [row.routes for row in table.rows if row.routes is not None]
        missing = next((row for row in table.rows if row.routes is None and row.mask.any()), None)
        if missing is not None:
            raise RunError(
                "M433",
                f"sample {missing.index} has no routed experts",
                owner=_OWNER,
                why="--use-rollout-routing-replay trains with the engine's routes, and nothing brought this sample's",
                fix="have the function that makes samples keep routed_experts, or use --use-routing-replay",
                sample=missing.index,
            )
        shape = given[0].shape[1:] if given else (0, 0)
        values = np.full((len(table.tokens), *shape), OWN_CHOICE, np.int16)
        for row, start, length in zip(table.rows, table.starts.tolist(), table.lengths.tolist(), strict=False):
            if row.routes is None:
                continue
            if row.routes.shape != (length, *shape):
                raise wrong_shape(f"sample {row.index} has routes", row.routes.shape, (length, *shape), sample=row.index)
            values[start : start + length] = row.routes
        return cls(table, values)

    @classmethod
    def recorded(cls, table: RowTable, micro_batches: Sequence[MicroBatch], outputs: Sequence[ModelOutputs]) -> Routes:
        """The routes that a pass over all rows recorded.

        Raises:
            RunError: the backend recorded none, or not of all tokens (M434).
        """
        values: np.ndarray | None = None
        for batch, output in zip(micro_batches, outputs, strict=True):
            found = output.routes
            if found is None or found.dim() != 3 or found.shape[0] != batch.num_tokens:
                shape = None if found is None else tuple(found.shape)
                raise wrong_shape("the training backend recorded routes", shape, (batch.num_tokens, "layers", "top_k"))
            if values is None:
                values = np.full((len(table.tokens), *found.shape[1:]), OWN_CHOICE, np.int16)
            rows = np.array(batch.rows)
            values[table.token_index(rows)] = found.numpy()[_positions(table, batch)]
        assert values is not None, "a pass has a micro-batch"
        return cls(table, values)

    def attach(self, batch: MicroBatch) -> MicroBatch:
        """The micro-batch with the routes of its tokens; as it is where no row brought any."""
        if not self.values.shape[1]:
            return batch
        routes = np.full((batch.num_tokens, *self.values.shape[1:]), OWN_CHOICE, np.int16)
        routes[_positions(self._table, batch)] = self.values[self._table.token_index(np.array(batch.rows))]
        return dataclasses.replace(batch, routes=torch.from_numpy(routes))


def wrong_shape(what: str, found: Sequence[object] | None, wanted: Sequence[object], **data: object) -> RunError:
    """The error for routes that are not of the tokens and layers at hand (M434)."""
    said = "none" if found is None else f"[{', '.join(map(str, found))}]"
    return RunError(
        "M434",
        f"{what} of a wrong shape",
        owner=_OWNER,
        why=f"they are {said} where [{', '.join(map(str, wanted))}] (tokens, layers, experts per token) belongs",
        fix="engine and trainer must run the same model, and a function that makes samples must keep routed_experts whole",
        **data,
    )


def _positions(table: RowTable, batch: MicroBatch) -> np.ndarray:
    """Where the tokens of the micro-batch's rows are among its flattened tokens, in the order of :meth:`RowTable.token_index`."""
    lengths = table.lengths[np.array(batch.rows)]
    if batch.attention_mask is not None:
        starts = np.arange(len(lengths)) * batch.tokens.shape[1]
    else:
        starts = np.cumsum(lengths) - lengths
    return ranges(starts, lengths)
