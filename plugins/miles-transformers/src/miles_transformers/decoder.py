"""Continuous batching: rows that decode together, prompts that join them, rows that leave as they end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from miles_core.errors import RunError
from miles_core.samples import FinishReason
from miles_transformers.graphs import StepRunner
from miles_transformers.jobs import Job
from miles_transformers.model import OWNER, LoadedModel
from miles_transformers.routes import RouteRecorder
from miles_transformers.rows import RowTable
from miles_transformers.sampling import sample
from miles_transformers.scoring import prompt_log_probs
from miles_transformers.slots import Prefill, SlotCache

SLACK = 64
"""Tokens of growth that admission leaves room for, so that a job is not evicted right after its prefill."""


class Decoder:
    """Decodes jobs in slots. Every method belongs to one thread, in inference mode.

    Args:
        model: the model.
        rows: most jobs at a time.
        tokens: size of the KV cache, all jobs together.
        prefill_tokens: most tokens of one prefill pass, with padding.
        graphs: whether steps on a GPU become CUDA graphs.
        routes: whether jobs may ask for the experts of their tokens.
    """

    def __init__(
        self, model: LoadedModel, rows: int, tokens: int, prefill_tokens: int, graphs: bool = True, routes: bool = False
    ) -> None:
        self.model, self.rows, self.tokens, self.prefill_tokens = model, rows, tokens, prefill_tokens
        self.limit = min(model.context, tokens)
        self.table = RowTable(rows, model.vocab, model.device)
        self.runner = StepRunner(model, rows, graphs)
        self.recorder = RouteRecorder(model, rows) if routes else None
        self.cache: SlotCache | None = None
        self._kept: SlotCache | None = None
        self.version = 0
        self.allocate()

    def allocate(self) -> None:
        """Make the KV cache, where there is none."""
        if self.cache is None and self._kept is not None:
            self.cache, self._kept = self._kept, None
        if self.cache is None:
            self.cache = SlotCache(self.model.layers, self.tokens, self.model.dtype, self.model.device)

    def free(self) -> None:
        """Drop the KV cache; no job may hold a slot. In host memory, where nobody waits for its room, it is only put away."""
        assert not self.table.jobs
        self.runner.clear()
        if self.cache is not None and self.model.device.type == "cpu":
            self._kept = self.cache
        elif self.cache is not None:
            self.cache.drop()
        self.cache = None

    def reset(self) -> list[Job]:
        """Drop every job, with what it made, and zero the cache."""
        jobs = self.table.fetch(range(self.table.count))
        self.table.remove(range(self.table.count))
        if self.cache is not None:
            self.cache.clear()
        return jobs

    def room(self, jobs: Sequence[Job]) -> int:
        """How many of these jobs, from the front, can be admitted now."""
        longest = self.table.longest + 1
        for taken, job in enumerate(jobs):
            longest = max(longest, min(job.limit, job.length + job.length // 4 + SLACK))
            if self.table.count + taken + 1 > min(self.rows, self.tokens // self._bucket(longest)):
                return taken
        return len(jobs)

    def admit(self, jobs: Sequence[Job]) -> list[Job]:
        """Prefill jobs into free slots and make their next token; returns those that ended with it."""
        assert self.cache is not None
        self._fit(len(jobs), max(job.length for job in jobs), max(job.limit for job in jobs))
        groups: dict[tuple[int, ...], list[Job]] = {}
        for job in jobs:
            groups.setdefault(tuple(job.tokens), []).append(job)
        # Prompts of like length share a pass, so that little of it is padding.
        prompts = sorted(groups, key=len, reverse=True)
        start = self.table.count
        codes = []
        while prompts:
            taken = max(1, self.prefill_tokens // len(prompts[0]))
            codes.append(self._prefill(prompts[:taken], [groups[p] for p in prompts[:taken]]))
            prompts = prompts[taken:]
        return self._end(start, np.concatenate(codes))

    def score(self, jobs: Sequence[Job]) -> list[Job]:
        """Log-probs of the prompts of the first jobs, as many as one pass takes; returns those jobs."""
        taken: list[Job] = []
        longest = 0
        for job in jobs:
            longest = max(longest, job.length)
            if taken and longest * (len(taken) + 1) > self.prefill_tokens:
                break
            taken.append(job)
        if taken:
            found = prompt_log_probs(self.model, [(j.request.input_ids, j.request.params.temperature or 1.0) for j in taken])
            for job, log_probs in zip(taken, found, strict=True):
                start = job.request.logprob_start or 0
                if not all(map(math.isfinite, log_probs)):
                    raise self._not_finite(job)
                ids = job.request.input_ids
                job.input_log_probs = ((None, ids[start]), *zip(log_probs[start:], ids[start + 1 :], strict=True))
                if job.version is None:
                    job.version = self.version
        return taken

    def _not_finite(self, job: Job) -> RunError:
        return RunError(
            "M455",
            f"the model's logits for {job.request.rid} are not finite",
            owner=OWNER,
            why=f"weights of version {self.version} overflow or hold NaN",
            fix="lower the learning rate, or decode in fp32",
        )

    def _prefill(self, prompts: Sequence[tuple[int, ...]], groups: Sequence[Sequence[Job]]) -> np.ndarray:
        """One pass over distinct prompts, longest first; each fills the slots of its group."""
        assert self.cache is not None
        device, width = self.model.device, len(prompts[0])
        first = self.table.count
        self.table.append([job for group in groups for job in group])
        last = self.table.count
        padding = torch.tensor([width - len(p) for p in prompts])
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts]).to(device)
        source = torch.repeat_interleave(torch.tensor([len(g) for g in groups])).to(device)
        padded = bool(padding.any())
        padding = padding.to(device)
        columns = torch.arange(width, device=device)
        distance = (columns[:, None] - columns[None, :])[None, None]
        mask = distance >= 0
        if padded:
            # A padding token attends to itself alone: with nothing to attend to, it would spread NaN through the layers.
            mask = (mask & (columns >= padding[:, None, None, None])) | (distance == 0)
        else:
            mask = mask.expand(len(prompts), 1, width, width)
        positions = (columns - padding[:, None]).clamp_(min=0)
        distinct = last - first == len(prompts)
        self.cache.start_prefill(Prefill(first, last - first, None if distinct else source, padding if padded else None))
        if self.recorder is not None:
            self.recorder.start_prefill(ids.numel())
        logits = self.model.forward(ids, positions, mask, distance, self.cache)
        if self.recorder is not None:
            self._keep_prefilled(self.recorder, prompts, groups)
        for job in self.table.jobs[first:last]:
            if job.version is None:
                job.version = self.version
        return self._sample(first, last, logits if distinct else logits[source])

    def step(self) -> list[Job]:
        """One token for every row; returns the jobs that ended."""
        assert self.cache is not None
        table, count = self.table, self.table.count
        self._fit(0, table.longest + 1, int(max(job.limit for job in table.jobs)) if self._full() else 0)
        positions = table.length[:count]
        if self.recorder is not None:
            self.recorder.start_step()
        logits = self.runner.run(self.cache, table.last[:count], positions, table.longest + 1)
        if self.recorder is not None:
            self._keep_stepped(self.recorder)
        positions += 1
        table.host_lengths[:count] += 1
        return self._end(0, self._sample(0, count, logits))

    @staticmethod
    def _keep_prefilled(recorder: RouteRecorder, prompts: Sequence[tuple[int, ...]], groups: Sequence[Sequence[Job]]) -> None:
        if any(job.request.return_routed_experts for group in groups for job in group):
            noted = recorder.prefilled(len(prompts))
            for routes, prompt, group in zip(noted, prompts, groups, strict=True):
                for job in group:
                    # A job that was evicted is computed anew, the tokens that it had made included.
                    job.routes = [routes[-len(prompt) :]] if job.request.return_routed_experts else []
        recorder.stop()

    def _keep_stepped(self, recorder: RouteRecorder) -> None:
        if any(job.request.return_routed_experts for job in self.table.jobs):
            noted = recorder.stepped(self.table.count)
            for row, job in enumerate(self.table.jobs):
                if job.request.return_routed_experts:
                    job.routes.append(noted[row : row + 1])
        recorder.stop()

    def _full(self) -> bool:
        assert self.cache is not None
        return self.table.longest + 1 > self.cache.length_capacity

    def overflow(self) -> list[int]:
        """Rows that must leave before the next step because the cache cannot hold all of them, the youngest jobs first."""
        if not self.table.jobs or not self._full():
            return []
        allowed = self.tokens // self._bucket(self.table.longest + 1)
        excess = self.table.count - min(allowed, self.rows)
        youngest = sorted(range(self.table.count), key=lambda row: self.table.jobs[row].order, reverse=True)
        return youngest[: max(0, excess)]

    def evict(self, rows: Sequence[int]) -> list[Job]:
        """Take rows out of their slots; returns their jobs with what they made so far."""
        jobs = self.table.fetch(rows)
        self._remove(rows)
        return jobs

    def _sample(self, first: int, last: int, logits: torch.Tensor) -> np.ndarray:
        tokens, log_probs = sample(logits, self.table.controls(first, last))
        codes: np.ndarray = self.table.write(first, last, tokens, log_probs).cpu().numpy()
        if self.table.text_stops:
            self._check_texts(first, last, codes)
        return codes

    def _check_texts(self, first: int, last: int, codes: np.ndarray) -> None:
        rows = [row for row in self.table.text_stops if first <= row < last and codes[row - first] in (0, 2)]
        params = [self.table.jobs[row].request.params for row in rows]
        due = [i for i, row in enumerate(rows) if self.table.host_made[row] >= params[i].min_new_tokens]
        if not due:
            return
        # A token spells at least one byte, except special ones that are left out; the margin is for those.
        size = 8 + max(len(text.encode()) for i in due for text in params[i].stop)
        texts = self.model.decode(self.table.tails([rows[i] for i in due], size), skip_special_tokens=False)
        for i, text in zip(due, texts, strict=True):
            if any(stop in text for stop in params[i].stop):
                codes[rows[i] - first] = 1

    def _end(self, start: int, codes: np.ndarray) -> list[Job]:
        rows = (np.flatnonzero(codes) + start).tolist()
        if not rows:
            return []
        if (codes == 3).any():
            raise self._not_finite(self.table.jobs[start + int(np.flatnonzero(codes == 3)[0])])
        jobs = self.table.fetch(rows)
        for row, job in zip(rows, jobs, strict=True):
            job.reason = FinishReason.STOP if codes[row - start] == 1 else FinishReason.LENGTH
        self._remove(rows)
        return jobs

    def _remove(self, rows: Sequence[int]) -> None:
        assert self.cache is not None
        sources, targets = self.table.remove(rows)
        if sources:
            device = self.model.device
            length = int(self.table.host_lengths[targets].max())
            self.cache.move(torch.tensor(sources, device=device), torch.tensor(targets, device=device), length)

    def _bucket(self, length: int) -> int:
        """The slot length to use for ``length`` tokens: grows by half, so that copies stay rare."""
        size = 32
        while size < length:
            size = -(-size * 3 // 2 // 32) * 32
        return max(length, min(size, self.limit))

    def _fit(self, joining: int, longest: int, limit: int) -> None:
        """Give the cache slots for all rows: as long as they can get where the pool allows it, as long as they are otherwise."""
        assert self.cache is not None
        rows, longest = self.table.count + joining, max(self.table.longest + 1, longest)
        if rows <= self.cache.row_capacity and longest <= self.cache.length_capacity:
            return
        length = self._bucket(max(longest, limit))
        if rows * length > self.tokens:
            length = self._bucket(longest)
        capacity = min(self.rows, self.tokens // length)
        self.cache.reshape(capacity, length, self.table.count, self.table.longest)
