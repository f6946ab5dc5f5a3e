"""The state of the rows that decode together, as tensors with one entry per slot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from miles_transformers.jobs import Job
from miles_transformers.sampling import Controls


class RowTable:
    """Rows ``0 .. count - 1`` are live. ``lengths`` and ``made`` are kept on the host too, so that no step asks the device.

    Args:
        capacity: most rows.
        vocab: size of the vocabulary.
    """

    def __init__(self, capacity: int, vocab: int, device: torch.device) -> None:
        self.vocab, self.device = vocab, device
        self.jobs: list[Job] = []
        self.host_lengths = np.zeros(capacity, dtype=np.int64)
        self.host_made = np.zeros(capacity, dtype=np.int64)

        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(capacity, dtype=dtype, device=device)

        self.length, self.made, self.last = column(torch.int64), column(torch.int64), column(torch.int64)
        self.max_new, self.min_new = column(torch.int64), column(torch.int64)
        self.seed, self.top_k = column(torch.int64), column(torch.int64)
        self.temperature, self.top_p = column(torch.float32), column(torch.float32)
        self.greedy = column(torch.bool)
        self.stop_ids = torch.full((capacity, 1), -1, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(capacity, 16, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(capacity, 16, dtype=torch.float32, device=device)

    @property
    def count(self) -> int:
        """Live rows."""
        return len(self.jobs)

    @property
    def longest(self) -> int:
        """Most tokens in a live slot."""
        return int(self.host_lengths[: self.count].max()) if self.jobs else 0

    def append(self, jobs: Sequence[Job]) -> None:
        """Add rows for jobs whose tokens are about to be prefilled."""
        first, last = self.count, self.count + len(jobs)
        params = [job.request.params for job in jobs]
        made = [len(job.output_ids) for job in jobs]
        self._widen(max(made) + 1, max(len(job.stop_ids) for job in jobs))

        def put(target: Tensor, values: Sequence[float] | Sequence[list[int]]) -> None:
            target[first:last] = torch.tensor(values, dtype=target.dtype).to(self.device, non_blocking=True)

        lengths = [job.length for job in jobs]
        put(self.length, lengths)
        put(self.made, made)
        put(self.max_new, [job.max_new for job in jobs])
        put(self.min_new, [p.min_new_tokens for p in params])
        put(self.seed, [job.seed for job in jobs])
        put(self.top_k, [p.top_k if p.top_k > 0 else self.vocab for p in params])
        put(self.top_p, [p.top_p for p in params])
        put(self.temperature, [p.temperature or 1.0 for p in params])
        put(self.greedy, [p.temperature == 0.0 for p in params])
        width = self.stop_ids.shape[1]
        put(self.stop_ids, [[*job.stop_ids, *[-1] * (width - len(job.stop_ids))] for job in jobs])
        self.host_lengths[first:last] = lengths
        self.host_made[first:last] = made
        for row, job in enumerate(jobs, first):
            if job.output_ids:
                self.tokens[row, : len(job.output_ids)] = torch.tensor(job.output_ids).to(self.device)
                self.log_probs[row, : len(job.output_ids)] = torch.tensor(job.log_probs).to(self.device)
        self.jobs.extend(jobs)
        self._summarise()

    def controls(self, first: int, last: int) -> Controls:
        """How to sample rows ``first .. last - 1``."""
        rows = slice(first, last)
        banned = None
        if self.any_minimum:
            banned = torch.where((self.made[rows] < self.min_new[rows])[:, None], self.stop_ids[rows], -1)
        filtered = None
        if self.filtered:
            here = [row - first for row in self.filtered if first <= row < last]
            filtered = torch.tensor(here, dtype=torch.int64, device=self.device) if here else None
        return Controls(
            temperature=self.temperature[rows],
            greedy=self.greedy[rows],
            top_p=self.top_p[rows],
            top_k=self.top_k[rows],
            seed=self.seed[rows],
            counter=self.made[rows],
            filtered=filtered,
            banned=banned,
            any_temperature=self.any_temperature,
            any_greedy=self.any_greedy,
            all_greedy=self.all_greedy,
        )

    def write(self, first: int, last: int, tokens: Tensor, log_probs: Tensor) -> Tensor:
        """Record new tokens ``[N]`` of rows; returns per row, int8 ``[N]``: 0 goes on, 1 stop token, 2 length, 3 not finite."""
        self._widen(int(self.host_made[first:last].max()) + 1, 0)
        rows = slice(first, last)
        made = self.made[rows, None]
        self.tokens[rows].scatter_(1, made, tokens[:, None])
        self.log_probs[rows].scatter_(1, made, log_probs[:, None])
        self.last[rows] = tokens
        self.made[rows] += 1
        self.host_made[rows] += 1
        stopped = (tokens[:, None] == self.stop_ids[rows]).any(1)
        codes = torch.where(self.made[rows] >= self.max_new[rows], 2, 0)
        codes = torch.where(stopped, 1, codes)
        return torch.where(log_probs.isfinite(), codes, 3).to(torch.int8)

    def tails(self, rows: Sequence[int], size: int) -> list[list[int]]:
        """The last ``size`` tokens of rows, fewer where fewer were made."""
        index = torch.tensor(rows, device=self.device)
        columns = self.made[index][:, None] - torch.arange(size, 0, -1, device=self.device)
        found = self.tokens[index].gather(1, columns.clamp(min=0)).tolist()
        return [row[max(0, size - int(self.host_made[i])) :] for i, row in zip(rows, found, strict=True)]

    def fetch(self, rows: Sequence[int]) -> list[Job]:
        """Copy what rows made into their jobs; returns the jobs."""
        if not rows:
            return []
        width = int(self.host_made[list(rows)].max())
        index = torch.tensor(rows, device=self.device)
        tokens, log_probs = self.tokens[index, :width].tolist(), self.log_probs[index, :width].tolist()
        jobs = [self.jobs[row] for row in rows]
        for row, job, ids, values in zip(rows, jobs, tokens, log_probs, strict=True):
            made = int(self.host_made[row])
            job.output_ids, job.log_probs = ids[:made], values[:made]
        return jobs

    def remove(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Drop rows and close the gaps with the last rows; returns which rows moved where, as sources and targets."""
        gone = set(rows)
        count = self.count - len(gone)
        targets = sorted(row for row in gone if row < count)
        sources = [row for row in range(count, self.count) if row not in gone]
        if targets:
            to, by = torch.tensor(targets, device=self.device), torch.tensor(sources, device=self.device)
            for column in self._columns():
                column[to] = column[by]
            self.host_lengths[targets] = self.host_lengths[sources]
            self.host_made[targets] = self.host_made[sources]
            for target, source in zip(targets, sources, strict=True):
                self.jobs[target] = self.jobs[source]
        del self.jobs[count:]
        self._summarise()
        return sources, targets

    def _columns(self) -> list[Tensor]:
        named = (self.length, self.made, self.last, self.max_new, self.min_new, self.seed, self.top_k, self.temperature)
        return [*named, self.top_p, self.greedy, self.stop_ids, self.tokens, self.log_probs]

    def _summarise(self) -> None:
        params = [job.request.params for job in self.jobs]
        self.any_temperature = any(p.temperature not in (0.0, 1.0) for p in params)
        self.any_greedy = any(p.temperature == 0.0 for p in params)
        self.all_greedy = all(p.temperature == 0.0 for p in params)
        self.filtered = [row for row, p in enumerate(params) if p.top_p < 1.0 or 0 < p.top_k < self.vocab]
        self.any_minimum = any(p.min_new_tokens > 0 for p in params)
        self.text_stops = [row for row, p in enumerate(params) if p.stop]

    def _widen(self, made: int, stops: int) -> None:
        if stops > self.stop_ids.shape[1]:
            self.stop_ids = torch.nn.functional.pad(self.stop_ids, (0, stops - self.stop_ids.shape[1]), value=-1)
        if made > self.tokens.shape[1]:
            extra = max(made, 2 * self.tokens.shape[1]) - self.tokens.shape[1]
            self.tokens = torch.nn.functional.pad(self.tokens, (0, extra))
            self.log_probs = torch.nn.functional.pad(self.log_probs, (0, extra))
