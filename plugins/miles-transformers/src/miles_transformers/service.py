"""The engine as the HTTP server sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, SamplingParams
from miles_core.serving import PauseMode
from miles_transformers.jobs import Job, Submission
from miles_transformers.sampling import seed_of

if TYPE_CHECKING:
    from miles_transformers.engine import TransformersEngine

T = TypeVar("T")


class Service:
    """Implements :class:`miles_core.serving.EngineService` over an engine that has started."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine
        self._model = engine.model
        self._scheduler = engine.scheduler
        self._arrived = 0
        self._live: set[str] = set()

    async def submit(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[Sequence[GenerateResult], None]:
        """See the protocol."""
        self._check(requests)
        queue: asyncio.Queue[list[Job] | BaseException] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(item: list[Job] | BaseException) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        submission = Submission(deliver)
        submission.jobs = [self._job(request, submission) for request in requests]
        left = {request.rid for request in requests}
        self._live |= left
        try:
            empty = [job for job in submission.jobs if job.max_new == 0 and not job.unscored]
            if empty:
                submission.jobs = [job for job in submission.jobs if job not in empty]
                for job in empty:
                    job.reason = FinishReason.LENGTH
                deliver(empty)
            self._scheduler.submit(submission)
            while left:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                jobs = list(item)
                while not queue.empty():
                    more = queue.get_nowait()
                    if isinstance(more, BaseException):
                        raise more
                    jobs.extend(more)
                results = self._results(jobs)
                done = {result.rid for result in results}
                left -= done
                self._live -= done
                yield results
        finally:
            self._live -= left
            if left:
                self._scheduler.drop(submission)

    def _check(self, requests: Sequence[GenerateRequest]) -> None:
        limit, vocab = self._scheduler.decoder.limit, self._model.vocab
        routes = self._scheduler.decoder.recorder is not None
        checked: set[int] = set()
        for request in requests:
            if request.return_routed_experts and not routes:
                raise ValueError(f"{request.rid}: routed experts are only told with --use-rollout-routing-replay")
            if request.rid in self._live:
                raise ValueError(f"rid {request.rid} is in use by a request that runs")
            ids = request.input_ids
            if id(ids) in checked:
                continue
            checked.add(id(ids))
            if max(ids) >= vocab:
                raise ValueError(f"{request.rid}: token id {max(ids)} is outside of the vocabulary of {vocab}")
            if request.params.max_new_tokens == 0 and request.logprob_start is not None:
                # Scoring alone keeps nothing in the cache.
                if len(ids) > self._model.context:
                    raise ValueError(f"{request.rid}: the prompt has {len(ids)} tokens and the model takes {self._model.context}")
            elif len(ids) >= limit:
                raise ValueError(
                    f"{request.rid}: the prompt has {len(ids)} tokens and the context holds {limit}, response included"
                )

    def _job(self, request: GenerateRequest, submission: Submission) -> Job:
        params = request.params
        number, self._arrived = self._arrived, self._arrived + 1
        eos = () if params.ignore_eos else self._model.eos_ids
        return Job(
            request=request,
            order=number,
            seed=params.sampling_seed if params.sampling_seed is not None else seed_of(self._engine.seed, number),
            max_new=max(0, min(params.max_new_tokens, self._scheduler.decoder.limit - len(request.input_ids))),
            stop_ids=tuple(dict.fromkeys((*eos, *params.stop_token_ids))),
            owner=submission,
        )

    def _results(self, jobs: Sequence[Job]) -> list[GenerateResult]:
        texts = [""] * len(jobs)
        for skip in (False, True):
            places = [i for i, job in enumerate(jobs) if job.request.params.skip_special_tokens is skip]
            found = self._model.decode([jobs[i].output_ids for i in places], skip) if places else []
            for i, text in zip(places, found, strict=True):
                texts[i] = text
        version = self._scheduler.decoder.version
        results = []
        for job, text in zip(jobs, texts, strict=True):
            assert job.reason is not None
            results.append(
                GenerateResult(
                    rid=job.request.rid,
                    output_ids=tuple(job.output_ids),
                    log_probs=tuple(job.log_probs),
                    finish_reason=job.reason,
                    weight_version=version if job.version is None else job.version,
                    text=text,
                    prompt_tokens=len(job.request.input_ids),
                    input_log_probs=job.input_log_probs,
                    routed_experts=job.routed_experts,
                )
            )
        return results

    async def abort(self, rids: Sequence[str] | None) -> None:
        """See the protocol."""
        await self._in_thread(self._scheduler.abort, rids)

    async def health(self, generate: bool) -> None:
        """See the protocol. A token is made only where decoding is on and idle: elsewhere it would wait its turn."""
        idle = not self._scheduler.running and not self._scheduler.waiting
        if generate and idle and self._engine.serving:
            request = GenerateRequest(f"health-{self._arrived}", [0], SamplingParams(max_new_tokens=1, temperature=0.0))
            async for _ in self.submit([request]):
                pass
        else:
            await self._in_thread(self._engine.ping)

    def info(self) -> dict[str, Any]:
        """See the protocol."""
        return self._engine.info()

    def model_info(self) -> dict[str, Any]:
        """See the protocol."""
        path = str(self._model.path)
        version = str(self._scheduler.decoder.version)
        return {"model_path": path, "tokenizer_path": path, "is_generation": True, "weight_version": version}

    async def pause(self, mode: PauseMode) -> None:
        """See the protocol."""
        await self._in_thread(self._engine.pause, mode)

    async def resume(self) -> None:
        """See the protocol."""
        await self._in_thread(self._engine.resume)

    async def flush(self) -> None:
        """See the protocol."""
        await self._in_thread(self._engine.flush)

    async def release_memory(self, tags: Sequence[str] | None) -> None:
        """See the protocol."""
        await self._in_thread(self._engine.release_memory, *(() if tags is None else (tags,)))

    async def resume_memory(self, tags: Sequence[str] | None) -> None:
        """See the protocol."""
        await self._in_thread(self._engine.resume_memory, *(() if tags is None else (tags,)))

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.to_thread(work, *args)
