"""Log-probs of whole rollouts, without gradients."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from miles_core.protocols.backend import OutputRequest, TrainingBackend
from miles_core.training.batch import MicroBatch, ModelOutputs
from miles_core.training.pack import pack
from miles_core.training.plan import BinRule
from miles_core.training.reduce import reduced
from miles_core.training.routing import Routes
from miles_core.training.table import RowTable

NAMES = ("log_probs", "entropy", "values")
"""Per-token outputs of a pass."""


class Scorer:
    """Runs all rows of a rank through the model; the micro-batches are made on first use and serve every pass."""

    def __init__(
        self, backend: TrainingBackend, table: RowTable, rule: BinRule, request: OutputRequest, *, layout: str, multiple: int
    ) -> None:
        self._backend = backend
        self._table = table
        self._rule = rule
        self._request = request
        self._layout = layout
        self._multiple = multiple
        self._micro_batches: list[MicroBatch] | None = None

    def outputs(self, weights: str, routes: Routes | None = None) -> dict[str, np.ndarray] | None:
        """What the request asks for of every response token, float32, ``[N + 1]`` each, by :data:`NAMES`. Collective.

        None where the backend computes no loss.

        Args:
            weights: name of the weights.
            routes: experts to send the tokens to; None lets the routers choose.
        """
        micro_batches = self._made()
        if routes is not None:
            micro_batches = [routes.attach(batch) for batch in micro_batches]
        return self._flat(self._backend.forward(micro_batches, self._request, weights=weights))

    def recorded(self, weights: str) -> tuple[dict[str, np.ndarray] | None, Routes]:
        """The same, and the experts that each token went to. Collective.

        Raises:
            RunError: the backend recorded none, or not of all tokens (M434).
        """
        micro_batches = self._made()
        outputs = self._backend.forward(micro_batches, dataclasses.replace(self._request, routes=True), weights=weights)
        found = Routes.recorded(self._table, micro_batches, outputs or [ModelOutputs()] * len(micro_batches))
        return self._flat(outputs if self._backend.parallel.computes_loss else None), found

    def _flat(self, outputs: list[ModelOutputs] | None) -> dict[str, np.ndarray] | None:
        if outputs is None:
            return None
        places = np.concatenate([self._table.response_index(np.array(batch.rows)) for batch in self._made()])
        found = {}
        for name in NAMES:
            parts = [part for output in outputs if (part := getattr(output, name)) is not None]
            if parts:
                found[name] = np.zeros(self._table.response_tokens + 1, np.float32)
                found[name][places] = torch.cat(parts).float().cpu().numpy()
        return found

    def _made(self) -> list[MicroBatch]:
        if self._micro_batches is None:
            lengths = self._table.lengths[:-1].tolist()
            device = self._backend.device
            agreed = torch.tensor([max(self._rule.count(lengths), 1)], device=device)
            count = int(reduced(agreed, self._backend.parallel, "max").item())
            self._micro_batches = [
                pack(self._table, rows, {}, layout=self._layout, multiple=self._multiple).to(device)
                for rows in self._rule.bins(lengths, count)
            ]
        return self._micro_batches
