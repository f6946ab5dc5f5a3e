"""Decoding steps as CUDA graphs: one launch in place of some hundreds, which is what a step of a small model waits for."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from miles_transformers.model import LoadedModel
from miles_transformers.slots import SlotCache

log = logging.getLogger(__name__)

Key = tuple[int, int, int]
"""Rows of the graph, columns that it attends to, columns of a slot."""


def attended_columns(longest: int, graphs: bool) -> int:
    """Columns to attend to for slots of up to ``longest`` tokens: few distinct numbers where each of them is a graph."""
    grain = 8 if not graphs else 64 if longest <= 512 else 256
    return -(-longest // grain) * grain


class StepRunner:
    """Runs the forward pass of a step, on a GPU as a graph from the second time that a shape comes up.

    Rows beyond the live ones write to the first column of free slots, where the next prefill overwrites it.

    Args:
        model: the model.
        rows: most rows.
        graphs: whether to capture graphs.
    """

    def __init__(self, model: LoadedModel, rows: int, graphs: bool) -> None:
        self._model, self._rows = model, rows
        self.graphs = graphs and model.device.type == "cuda"
        self._ids = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self._seen: set[Key] = set()
        self._captured: dict[Key, torch.cuda.CUDAGraph] = {}
        self._logits: Tensor | None = None
        """Where every graph leaves its logits, ``[rows, V]``."""
        self._pool: Any = None
        self._stream: Any = None

    def run(self, cache: SlotCache, ids: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Logits ``[N, V]`` after writing tokens ``ids [N]`` at ``positions [N]``; slots hold up to ``longest`` tokens then."""
        attended = min(attended_columns(longest, self.graphs), cache.length_capacity)
        if not self.graphs:
            return self._forward(cache, ids, positions, attended)
        count = ids.shape[0]
        rows = min(1 << (count - 1).bit_length(), self._rows, cache.row_capacity)
        key = (rows, attended, cache.length_capacity)
        if key not in self._seen:
            self._seen.add(key)
            return self._forward(cache, ids, positions, attended)
        self._ids[:count] = ids
        self._positions[:count] = positions
        self._positions[count:rows] = 0
        if key not in self._captured:
            try:
                self._captured[key] = self._capture(cache, rows, attended)
            except RuntimeError as error:
                # Some models ask the device for a number in the middle of a pass, which a graph cannot hold.
                log.warning("decoding goes on without CUDA graphs: %s", str(error).splitlines()[0])
                self.clear()
                self.graphs = False
                return self._forward(cache, ids, positions, attended)
        self._captured[key].replay()
        assert self._logits is not None
        return self._logits[:count]

    def clear(self) -> None:
        """Forget all graphs: the cache or the weights move to other addresses."""
        self._captured.clear()
        self._seen.clear()
        self._pool = self._logits = None

    def _forward(self, cache: SlotCache, ids: Tensor, positions: Tensor, attended: int) -> Tensor:
        cache.start_step(positions, attended)
        columns = torch.arange(attended, device=positions.device)
        distance = (positions[:, None] - columns)[:, None, None, :]
        return self._model.forward(ids[:, None], positions[:, None], distance >= 0, distance, cache)

    def _capture(self, cache: SlotCache, rows: int, attended: int) -> torch.cuda.CUDAGraph:
        ids, positions = self._ids[:rows], self._positions[:rows]
        # A first pass lets libraries set themselves up outside of the graph; it writes what the replay will write.
        if self._stream is None:
            # One for all captures: libraries keep work space for every stream that they have seen.
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            logits = self._forward(cache, ids, positions, attended)
            if self._logits is None:
                self._logits = logits.new_empty(self._rows, logits.shape[1])
            del logits
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            self._logits[:rows] = self._forward(cache, ids, positions, attended)
        self._pool = self._pool or graph.pool()
        return graph
