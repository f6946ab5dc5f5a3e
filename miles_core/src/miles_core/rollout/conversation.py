"""Samples that a function makes in turns: it asks the model, answers it, and asks again."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from miles_core.errors import RunError
from miles_core.plugins.adapters import Arguments
from miles_core.rollout.routing import keep_routes
from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, Sample, SamplingParams, Status
from miles_core.serving.client import EngineClient
from miles_core.serving.wire import params_document

if TYPE_CHECKING:
    from miles_core.rollout.sampling import SamplingPlan

FRUITLESS_TURNS = 20
Shared = TypeVar("Shared")


class CutOff(BaseException):
    """The rollout ends while a sample is being made. It passes through the function that makes it, and its ``except Exception``."""


@dataclass(frozen=True)
class Turn:
    """What the model said in one turn. ``reason``: ``STOP`` for the end of the sequence or a stop text, ``LENGTH`` for a limit."""

    text: str
    ids: tuple[int, ...]
    reason: FinishReason


class Conversation:
    """What a generate function gets as ``generate``: one sample, the engines, and the tokenizer.

    ``await generate()`` has the model go on from all tokens that the sample has; :meth:`observe` appends what the environment
    answers. Tokens are only ever appended, and never tokenised a second time.

    Attributes:
        sample: that is being made.
        params: how it is sampled.
        evaluation: whether it is made for an evaluation, and not for training.
        plan, desk, stopping: of all samples that are being made, for core.
    """

    def __init__(
        self, sample: Sample, plan: SamplingPlan, desk: Desk, stopping: Callable[[], bool], function: str, evaluation: bool
    ) -> None:
        self.sample = sample
        self.params: SamplingParams = plan.params
        self.evaluation = evaluation
        self.plan = plan
        self.desk = desk
        self.stopping = stopping
        self._function = function

    @property
    def room(self) -> int:
        """Tokens that still go into the response, by the limits on response and context."""
        request = self.plan.request(self.sample)
        return 0 if request is None else request.params.max_new_tokens

    async def __call__(
        self,
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        temperature: float | None = None,
    ) -> Turn:
        """Have the model go on; what it says is appended to the sample, and trained on.

        Args:
            max_new_tokens: most tokens of this turn, where the room that is left is more.
            stop, stop_token_ids: end the turn, besides those of the options; a stop text stays in the response.
            temperature: of this turn. Training divides the logits by that of the options.

        Returns:
            The turn; without a token and with reason ``LENGTH`` when there is no room left, which makes the sample ``TRUNCATED``.

        Raises:
            RunError: the engines fail (M44x), or cut the sample off again and again (M405).
        """
        from miles_core.rollout.sampling import complete

        sample, first = self.sample, self.sample.response_length
        tries = 0
        while True:
            request = self._request(sample.response_length - first, max_new_tokens, stop, stop_token_ids, temperature)
            if request is None:
                sample.status, reason = Status.TRUNCATED, FinishReason.LENGTH
                break
            if self.stopping():
                raise CutOff
            result = await self.desk.ask(request)
            complete(sample, result)
            self._settle(result)
            reason = result.finish_reason
            if reason is not FinishReason.ABORT:
                break
            tries = 0 if result.output_ids else tries + 1
            if tries >= FRUITLESS_TURNS:
                raise RunError(
                    "M405",
                    f"engines cut off sample {sample.index} {FRUITLESS_TURNS} times in a row without making a token",
                    owner="miles-core",
                    fix="see the engines' logs: something keeps aborting their requests",
                )
        ids = sample.response_ids[first:]
        return Turn(self.decode(ids) if ids else "", tuple(ids), reason)

    def observe(self, said: str | Sequence[int]) -> bool:
        """Append what the environment says. It is not trained on: mask 0, log-prob 0.0, version of the tokens before it.

        Returns:
            Whether it fits with room for an answer; when not, nothing is appended and the sample is ``TRUNCATED``.

        Raises:
            RunError: the model has said nothing yet; what comes before belongs into the prompt (M326).
        """
        sample = self.sample
        if not sample.response_ids:
            raise RunError(
                "M326",
                f"the function observed before the model said anything in sample {sample.index}",
                owner=f"--custom-generate-function-path {self._function}",
                fix="put what the model is to know first into the prompt",
            )
        ids = self.encode(said) if isinstance(said, str) else [int(token) for token in said]
        if len(ids) >= self.room:
            sample.status = Status.TRUNCATED
            return False
        mask = sample.loss_mask if sample.loss_mask is not None else [1] * sample.response_length
        sample.response_ids.extend(ids)
        sample.loss_mask = mask + [0] * len(ids)
        sample.rollout_log_probs = [*(sample.rollout_log_probs or []), *[0.0] * len(ids)]
        version, count = sample.weight_versions[-1]
        sample.weight_versions[-1] = (version, count + len(ids))
        sample.response = self.decode(sample.response_ids)
        sample.status = Status.PENDING
        return True

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without any that the tokenizer puts around a whole one."""
        assert self.plan.encode is not None
        return self.plan.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        assert self.plan.decode is not None
        return self.plan.decode(ids)

    def params_document(self, sample: Sample) -> dict[str, Any]:
        """How the sample is to be sampled, as SGLang's ``sampling_params``."""
        request = self.plan.request(sample)
        return params_document(self.params if request is None else request.params)

    def arguments(self, arguments: Arguments) -> EngineArguments:
        """The options, with the address of an engine that the sample may use."""
        return EngineArguments(arguments, self.desk.address(self.sample.group_index))

    def _request(
        self,
        made: int,
        max_new_tokens: int | None,
        stop: Sequence[str] | None,
        stop_token_ids: Sequence[int] | None,
        temperature: float | None,
    ) -> GenerateRequest | None:
        request = self.plan.request(self.sample)
        if request is None:
            return None
        params = request.params
        room = params.max_new_tokens if max_new_tokens is None else min(params.max_new_tokens, max_new_tokens - made)
        if room <= 0:
            return None
        texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
        params = replace(
            params,
            max_new_tokens=room,
            # What a turn needs at least is for the function to say: the option counts over the whole response.
            min_new_tokens=min(params.min_new_tokens, room),
            stop=(*params.stop, *texts),
            stop_token_ids=(*params.stop_token_ids, *(stop_token_ids or ())),
            temperature=params.temperature if temperature is None else temperature,
        )
        have = self.sample.response_length
        return replace(request, rid=f"{request.rid}-{have}-{self.desk.next_number()}", params=params)

    def _settle(self, result: GenerateResult) -> None:
        sample = self.sample
        sample.response = self.decode(sample.response_ids)
        if self.plan.experts is not None:
            keep_routes(sample, result, self.plan.experts)


@dataclass
class Desk:
    """Where the conversations of a batch hand in their requests.

    Args:
        together: hold requests until every running conversation waits, and send them as one ordered batch. So an engine whose
            answers depend on the batch gives the same in every run, whatever the order in which tools answer. Otherwise each goes
            out at once.
    """

    client: EngineClient
    together: bool
    running: int = 0
    _waiting: list[tuple[GenerateRequest, asyncio.Future[GenerateResult]]] = field(default_factory=list)
    _calls: set[asyncio.Task[None]] = field(default_factory=set)
    _number: int = 0
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _shared: Any = None
    _timer: asyncio.TimerHandle | None = None

    def address(self, group: int) -> str:
        """URL of the engine for a group that asks by itself."""
        urls = self.client.urls
        return urls[group % len(urls)]

    def next_number(self) -> int:
        """Makes request ids unique: an engine may still hold what it knew of a sample under an earlier one."""
        self._number += 1
        return self._number

    async def ask(self, request: GenerateRequest, patience: float | None = None) -> GenerateResult:
        """The engines' answer.

        Args:
            patience: seconds after which it goes out though others do not wait yet, when no further one comes; None waits for them.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[GenerateResult] = loop.create_future()
        self._waiting.append((request, answer))
        self.look()
        if patience is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(patience, functools.partial(self.look, late=True))
        return await answer

    def look(self, *, late: bool = False) -> None:
        """Send what is to be sent; ``late`` sends what waits."""
        if not self._waiting or (self.together and not late and len(self._waiting) < self.running):
            return
        batch, self._waiting = sorted(self._waiting, key=lambda each: _place(each[0].rid)), []
        call = asyncio.get_running_loop().create_task(self._send(batch))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def shared(self, make: Callable[[AsyncExitStack], Awaitable[Shared]]) -> Shared:
        """What ``make`` makes, once for all conversations; what it puts on the stack is undone at their end."""
        async with self._lock:
            if self._shared is None:
                self._shared = await make(self._stack)
        found: Shared = self._shared
        return found

    async def close(self) -> None:
        """End what runs."""
        if self._timer is not None:
            self._timer.cancel()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._stack.aclose()

    async def _send(self, batch: Sequence[tuple[GenerateRequest, asyncio.Future[GenerateResult]]]) -> None:
        waiting = {request.rid: answer for request, answer in batch}
        results = []
        try:
            async with aclosing(self.client.generate([request for request, _ in batch])) as answers:
                async for result in answers:
                    results.append(result)
                    if not self.together:
                        _answer(waiting.pop(result.rid), result)
        except Exception as error:
            for answer in waiting.values():
                if not answer.done():
                    answer.set_exception(error)
            return
        for result in sorted(results, key=lambda each: _place(each.rid)) if self.together else ():
            _answer(waiting.pop(result.rid), result)


class EngineArguments:
    """Options as attributes, and ``sglang_router_ip`` and ``sglang_router_port``: an engine that speaks SGLang's HTTP."""

    def __init__(self, arguments: Arguments, url: str) -> None:
        address = urlsplit(url)
        host = address.hostname or ""
        self._arguments = arguments
        self.sglang_router_ip = f"[{host}]" if ":" in host else host
        self.sglang_router_port = address.port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arguments, name)


Make = Callable[[Sample, Conversation], Awaitable[None]]


async def converse(
    client: EngineClient,
    groups: Sequence[Sequence[Sample]],
    plan: SamplingPlan,
    make: Make,
    stopping: Callable[[], bool],
    **about: Any,
) -> AsyncGenerator[Sequence[Sample], None]:
    """Make every unfinished sample of every group in place; yields each group when its last sample ended.

    Args:
        make: makes one sample; leaves it unfinished when the rollout ended meanwhile, and then its group is not yielded.
        about: what conversations are to know: ``function``, its name, and ``evaluation``.

    Raises:
        RunError: the first error of ``make`` or of an engine; everything else is ended.
    """
    desk = Desk(client, together=client.batch_stream)
    done: asyncio.Queue[Sequence[Sample] | BaseException] = asyncio.Queue()

    async def one(group: Sequence[Sample], sample: Sample) -> None:
        try:
            await make(sample, Conversation(sample, plan, desk, stopping, **about))
        except Exception as error:
            done.put_nowait(error)
        finally:
            desk.running -= 1
            # Those that wait for every running one to wait no longer wait for this one.
            desk.look()
        left[group[0].group_index] -= 1
        if not left[group[0].group_index]:
            done.put_nowait(group)

    left = {group[0].group_index: sum(not sample.finished for sample in group) for group in groups}
    open_ = [(group, sample) for group in groups for sample in group if not sample.finished]
    desk.running = len(open_)
    tasks = [asyncio.create_task(one(group, sample)) for group, sample in open_]
    for group in groups:
        if not left[group[0].group_index]:
            done.put_nowait(group)
    try:
        for _ in groups:
            item = await done.get()
            if isinstance(item, BaseException):
                raise item
            if all(sample.finished for sample in item):
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await desk.close()


def _answer(answer: asyncio.Future[GenerateResult], result: GenerateResult) -> None:
    if not answer.done():
        answer.set_result(result)


def _place(rid: str) -> tuple[int, ...]:
    """Samples in order, whatever the order in which they asked. A request's id ends in sample, tokens and a running number."""
    sample, have, _ = rid.rsplit("-", 3)[1:]
    return int(sample), int(have)
