"""Agents that make samples by a chat endpoint: ``async fn(sample, base_url)`` as ``--custom-generate-function-path`` names it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.config import DataOptions, RolloutOptions
from miles_core.errors import MilesError, RunError, UsageError
from miles_core.options import Config
from miles_core.plugins.causes import describe
from miles_core.rollout.conversation import Conversation, CutOff
from miles_core.rollout.routing import keep_routes
from miles_core.rollout.sampling import sample_seed
from miles_core.router.chat import ChatEndpoint, Piece
from miles_core.router.chat_template import ChatTemplate
from miles_core.router.sessions import Record, Session, SessionSettings, SessionStore
from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, Sample, SamplingParams, Status

if TYPE_CHECKING:
    from aiohttp import web

PATIENCE = 0.25
"""Seconds without a further request after which those that wait go out, where an engine takes batches: an agent may wait for
others, or take its time."""
MOST = 1 << 20
FLAG = "--custom-generate-function-path"


class Agents:
    """Runs an agent for each sample, with a session of its own behind a chat endpoint on loopback.

    The endpoint samples as the run does, whatever the agent asks for: temperature, top-p, top-k, stop texts, and limits on
    response and context. What the session's last branch holds becomes the sample.

    Args:
        function: ``fn(sample, base_url)``, async or not; one that is not gets a thread.
        name: as the option has it.

    Raises:
        UsageError: the model has no chat template (M351).
    """

    def __init__(self, function: Callable[..., Any], name: str, config: Config) -> None:
        from transformers import AutoTokenizer

        checkpoint = config.get(RolloutOptions).hf_checkpoint
        assert checkpoint is not None, "runs have a checkpoint"
        tokenizer = AutoTokenizer.from_pretrained(str(Path(checkpoint).expanduser()), local_files_only=True)
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                "M351",
                f"the agent {name} cannot talk to the model",
                owner=FLAG,
                why=f"the tokenizer of {checkpoint} has no chat template",
                fix="add a chat_template to the tokenizer, or write the function as fn(sample, generate)",
            )
        self._function = function
        self._name = name
        self._template = ChatTemplate(tokenizer, config.get(DataOptions).apply_chat_template_kwargs)
        self._tells = "evaluation" in inspect.signature(function).parameters

    async def make(self, sample: Sample, generate: Conversation) -> None:
        """Make one sample in place.

        Raises:
            CutOff: the rollout ended meanwhile.
            RunError: the agent failed (M326), or never asked the model (M350); or the engines failed.
        """
        endpoint, url = await generate.desk.shared(self._serve)
        mouth = _Mouth(sample, generate)
        session = endpoint.open(self._settings(generate), mouth.ask)
        mouth.session = session
        try:
            await self._run(sample, f"{url}/sessions/{session.id}/v1", generate, mouth)
        finally:
            endpoint.close(session)
        if session.last is None:
            if sample.status is Status.FAILED:
                return
            if not session.exhausted:
                fix = "give base_url to its client; set sample.status = Status.FAILED where its environment broke"
                raise RunError("M350", f"the agent never asked the model for sample {sample.index}", owner=self._owner, fix=fix)
            sample.status = Status.TRUNCATED
            return
        record = session.record()
        self._settle(sample, record, generate)
        sample.metadata["session"] = {
            "turns": session.turns,
            "branches": len(session.branches()),
            "rerendered": record.rerendered,
        }
        sample.metadata.setdefault("round_number", record.turns)
        if sample.status is not Status.FAILED:
            cut = session.exhausted or record.finish_reason is FinishReason.LENGTH
            sample.status = Status.TRUNCATED if cut else Status.COMPLETED

    async def _run(self, sample: Sample, base_url: str, generate: Conversation, mouth: _Mouth) -> None:
        further = {"evaluation": generate.evaluation} if self._tells else {}
        running = asyncio.ensure_future(_called(self._function, sample, base_url, **further))
        ended = asyncio.ensure_future(mouth.failed.wait())
        try:
            await asyncio.wait((running, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            if not running.done():
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        if mouth.failure is not None:
            raise mouth.failure
        if running.cancelled():
            raise self._broken("was cancelled", "let it end by itself")
        answer, error = running.result()
        if error is None:
            if answer not in (None, sample):
                raise self._broken(f"returned {type(answer).__name__}", "change the sample, and return nothing")
        elif mouth.session is None or not mouth.session.exhausted:
            # An agent that is told that there is no room may end as it likes.
            if mouth.session is not None and mouth.session.failure is not None:
                raise mouth.session.failure
            if isinstance(error, MilesError):
                raise error
            raise self._broken(f"failed with {describe(error)}", "repair the agent") from error

    def _settle(self, sample: Sample, record: Record, generate: Conversation) -> None:
        sample.prompt_ids, sample.response_ids = record.prompt_ids, record.response_ids
        sample.loss_mask, sample.rollout_log_probs = record.loss_mask, record.log_probs
        sample.weight_versions = record.weight_versions
        sample.response = generate.decode(record.response_ids)
        experts = generate.plan.experts
        if experts is not None:
            last = GenerateResult("", (0,), (0.0,), record.finish_reason, 0, "", routed_experts=record.routes)
            keep_routes(sample, last, experts)

    def _settings(self, generate: Conversation) -> SessionSettings:
        params = generate.params
        sampling = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "ignore_eos": params.ignore_eos,
            "stop": list(params.stop),
            "stop_token_ids": list(params.stop_token_ids),
        }
        return SessionSettings(sampling, params.max_new_tokens, generate.plan.max_context, generate.plan.experts is not None)

    async def _serve(self, stack: contextlib.AsyncExitStack) -> tuple[ChatEndpoint, str]:
        """The endpoint of a batch of samples, and its address."""
        from aiohttp import web

        endpoint = ChatEndpoint(self._template, None, store=SessionStore(most=MOST, most_tokens=1 << 62))

        async def handle(request: web.Request) -> web.StreamResponse:
            return await endpoint.handle(request, await request.read())

        app = web.Application(client_max_size=256 << 20, middlewares=[_told])
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return endpoint, f"http://{host}:{port}"

    def _broken(self, what: str, fix: str) -> RunError:
        return RunError("M326", f"the function {what}", owner=self._owner, fix=fix)

    @property
    def _owner(self) -> str:
        return f"{FLAG} {self._name}"


class _Mouth:
    """Has the engines make the replies of one sample's session.

    Attributes:
        failed: set when a request failed for a reason that is not the agent's: ``failure``.
    """

    def __init__(self, sample: Sample, generate: Conversation) -> None:
        self._sample = sample
        self._generate = generate
        self._asked = 0
        self.session: Session | None = None
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None

    async def ask(self, ids: list[int], params: SamplingParams, *, routed: bool, stream: bool) -> AsyncGenerator[Piece, None]:
        """See :class:`miles_core.router.chat.Ask`."""
        generate, desk = self._generate, self._generate.desk
        try:
            if generate.stopping():
                raise CutOff
            plan, index = generate.plan, self._sample.index
            # The first request draws as one that no agent makes.
            seed = sample_seed(plan.seed, index, self._asked and (self._asked << 24) + len(ids))
            rid = f"{plan.label}-{index}-{self._asked}-{desk.next_number()}"
            self._asked += 1
            request = GenerateRequest(rid, ids, replace(params, sampling_seed=seed), return_routed_experts=routed)
            result = await desk.ask(request, PATIENCE)
        except (CutOff, MilesError) as error:
            self.failure = error
            self.failed.set()
            raise _EndedError("the rollout has ended" if isinstance(error, CutOff) else str(error)) from None
        yield result.text, result


class _EndedError(Exception):
    """The run has an end for the session, and its agent is being ended."""


async def _told(request: web.Request, handler: Callable[[web.Request], Any]) -> Any:
    """Errors of the run as answers; the run has them already."""
    from aiohttp import web

    try:
        return await handler(request)
    except (_EndedError, MilesError) as error:
        return web.json_response({"error": {"message": str(error), "type": "server_error"}}, status=503)


_told.__middleware_version__ = 1  # type: ignore[attr-defined]


async def _called(function: Callable[..., Any], *arguments: Any, **further: Any) -> tuple[Any, BaseException | None]:
    """What a function returns, and raises; one that is not async runs in a thread, so that it may block."""
    try:
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            return await function(*arguments, **further), None
        answer, error = await _in_thread(functools.partial(function, *arguments, **further))
        return (await answer if inspect.isawaitable(answer) else answer), error
    except (Exception, SystemExit) as error:
        return None, error


async def _in_thread(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """In a thread of its own: all agents run at once, and one that hangs does not keep the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def settle(outcome: tuple[Any, BaseException | None]) -> None:
        if not done.done():
            done.set_result(outcome)

    def run() -> None:
        try:
            outcome: tuple[Any, BaseException | None] = (function(), None)
        except BaseException as error:
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop may be closed when an agent that was given up ends
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="miles-agent", daemon=True).start()
    return await done
