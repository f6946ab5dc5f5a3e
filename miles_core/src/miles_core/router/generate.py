"""``POST /generate`` over several workers: each prompt of a call is answered once, whoever answers it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from miles_core.router.call import Call
from miles_core.router.pool import Pool, Worker
from miles_core.router.upstream import AnswerError, Upstream, WorkerError
from miles_core.serving.wire import dumps

ATTEMPTS = 4
"""Times that a prompt is sent to a worker before its call fails."""
PATIENCE = 30.0
"""Seconds that a call waits for a worker when there is none."""
BACKOFF = 0.2
"""Seconds before a worker is tried a second time for one prompt; twice as many every further time, up to :data:`LONGEST`."""
LONGEST = 5.0

VERSION = re.compile(rb'"weight_version":\s*"(\d{1,18})"')
"""The weight version in an answer, which is not parsed for it."""

Event = tuple[int, dict[str, Any]]


@dataclass
class _Part:
    """Prompts of a call that go to one worker together.

    Attributes:
        open: indices without a whole answer, each with whether some of it was passed on.
        tried: workers that have lost them.
        attempts: how often they were sent.
    """

    open: dict[int, bool] = field(default_factory=dict)
    tried: set[Worker] = field(default_factory=set)
    attempts: int = 0


class Generator:
    """Answers calls.

    A prompt of which nothing has been passed on is sent to another worker when its own goes away or is silent; prompts that were
    answered are not sent again, so that none is answered twice. A prompt that has been passed on in part cannot be begun anew: its
    call fails. After an abort of everything, one whose worker goes away is answered as aborted and not begun anew.

    Args:
        patience: seconds that a call waits for a worker when there is none.
        attempts: times that a prompt is sent to a worker before its call fails.

    Attributes:
        aborts: how often everything was aborted. A call that came before the last time is not sent to a worker any more.
        retries: prompts that were sent to another worker.
    """

    def __init__(self, pool: Pool, upstream: Upstream, patience: float = PATIENCE, attempts: int = ATTEMPTS) -> None:
        self._pool = pool
        self._upstream = upstream
        self._patience = patience
        self._attempts = attempts
        self.aborts = 0
        self.retries = 0

    def aborted(self) -> None:
        """Everything in flight has been told to end."""
        self.aborts += 1
        self._pool.stir()

    async def one(self, prompt: Sequence[int] | bytes, body: bytes, aborts: int) -> bytes:
        """The answer to a call with one prompt that is no stream, as the worker wrote it.

        Args:
            prompt: its tokens, or their text, for the choice of a worker.
            body: the call as JSON.
            aborts: :attr:`aborts` when the call came.

        Raises:
            AnswerError: an error that is the answer.
        """
        tried: set[Worker] = set()
        for attempt in range(1, self._attempts + 1):
            worker = self._pool.choose(prompt, tried) or self._pool.choose(prompt)
            if worker is None:
                if not await self._pool.wait(self._patience, lambda: self.aborts != aborts):
                    raise refusal(503, f"none of {len(self._pool.workers)} workers is well")
                if self.aborts != aborts:
                    break
                worker = self._pool.choose(prompt)
                assert worker is not None, "the pool has a live worker"
            tried.add(worker)
            if self.aborts != aborts:
                break
            try:
                answer = await self._upstream.exchange(worker, "/generate", body)
            except WorkerError as error:
                if self.aborts != aborts:
                    break
                if attempt == self._attempts:
                    raise refusal(504 if error.silent else 502, f"sent to workers {attempt} times: {error}") from error
                self.retries += 1
                if self._pool.choose((), tried) is None:
                    await _pause(attempt)
                continue
            worker.served += 1
            if (found := VERSION.search(answer)) is not None:
                self._pool.saw_version(found[1].decode())
            return answer
        return dumps(Call.of(json.loads(body)).aborted(0, self._pool.version))

    async def answer(self, call: Call, aborts: int) -> AsyncGenerator[Event, None]:
        """``(index, document)`` as they come. A stream may have several of one prompt, the last of which has a finish reason.

        Args:
            aborts: :attr:`aborts` when the call came.

        Raises:
            AnswerError: an error that is the answer to the whole call.
        """
        queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        task = asyncio.create_task(self._all(call, aborts, queue))
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _all(self, call: Call, aborts: int, queue: asyncio.Queue[Any]) -> None:
        try:
            await self._spread(call, _Part(dict.fromkeys(range(len(call.prompts)), False)), aborts, queue)
        except Exception as error:
            found: BaseException = error
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            queue.put_nowait(found)
        else:
            queue.put_nowait(None)

    async def _spread(self, call: Call, part: _Part, aborts: int, queue: asyncio.Queue[Any]) -> None:
        """Send every prompt of a part to a worker, equal ones to the same."""
        if not await self._pool.wait(self._patience, lambda: self.aborts != aborts):
            raise refusal(503, f"none of {len(self._pool.workers)} workers is well")
        if self.aborts != aborts:
            self._give_up(call, part, queue)
            return
        parts: dict[Worker, _Part] = {}
        for group in call.groups():
            mine = [index for index in group if index in part.open]
            if not mine:
                continue
            worker = self._pool.choose(call.prompts[mine[0]], part.tried)
            if worker is None:
                part.tried = set()
                worker = self._pool.choose(call.prompts[mine[0]])
            assert worker is not None, "the pool has a live worker"
            parts.setdefault(worker, _Part({}, part.tried | {worker}, part.attempts + 1)).open |= dict.fromkeys(mine, False)
            # So that the choice for the next prompt sees it; a call to a worker counts what it holds itself.
            worker.load += len(mine)
        for worker, each in parts.items():
            worker.load -= len(each.open)
        async with asyncio.TaskGroup() as tasks:
            for worker, each in parts.items():
                tasks.create_task(self._serve(call, worker, each, aborts, queue))

    async def _serve(self, call: Call, worker: Worker, part: _Part, aborts: int, queue: asyncio.Queue[Any]) -> None:
        """Have one worker answer a part, and others what it leaves open."""
        try:
            await self._attempt(call, worker, part, queue)
        except WorkerError as error:
            if any(part.open.values()):
                raise refusal(502, f"a worker went away in the midst of a response: {error}") from error
            if self.aborts != aborts:
                self._give_up(call, part, queue)
                return
            if part.attempts >= self._attempts:
                raise refusal(504 if error.silent else 502, f"sent to workers {part.attempts} times: {error}") from error
            self.retries += len(part.open)
            if self._pool.choose((), part.tried) is None:
                await _pause(part.attempts)
            await self._spread(call, part, aborts, queue)

    def _give_up(self, call: Call, part: _Part, queue: asyncio.Queue[Any]) -> None:
        """Answer what is open as aborted."""
        for index in part.open:
            document = call.aborted(index, self._pool.version)
            queue.put_nowait((index, {**document, "index": index} if call.batched and call.stream else document))

    async def _attempt(self, call: Call, worker: Worker, part: _Part, queue: asyncio.Queue[Any]) -> None:
        """Pass a worker's answers on, and take those that are whole out of the part."""
        places = sorted(part.open)
        body = call.part(places)

        def give(place: int, document: Any) -> None:
            if not isinstance(document, dict) or not 0 <= place < len(places):
                raise refusal(502, f"{worker.url} sent an answer that is not one to its requests")
            index, meta = places[place], document.get("meta_info")
            if index not in part.open:
                return
            if isinstance(meta, dict) and meta.get("finish_reason") is not None:
                del part.open[index]
                worker.served += 1
                self._pool.saw_version(meta.get("weight_version"))
            else:
                part.open[index] = True
            if call.batched and call.stream:
                document["index"] = index
            queue.put_nowait((index, document))

        if call.stream:
            async with aclosing(self._upstream.events(worker, "/generate", body, load=len(places))) as events:
                async for document in events:
                    give(document.get("index", 0) if call.batched else 0, document)
        else:
            answer = await self._upstream.post(worker, "/generate", body, load=len(places))
            for place, document in enumerate(answer if call.batched and isinstance(answer, list) else [answer]):
                give(place, document)
        if part.open:
            raise refusal(502, f"{worker.url} left {len(part.open)} of {len(places)} requests without an answer")


async def _pause(attempts: int) -> None:
    await asyncio.sleep(min(BACKOFF * 2**attempts, LONGEST))


def refusal(status: int, why: str) -> AnswerError:
    """An error of the router's own."""
    return AnswerError(status, json.dumps({"error": {"message": why, "code": status}}).encode())
