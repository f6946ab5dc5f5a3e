"""A chat endpoint in OpenAI's form, whose conversations are kept as the tokens that the engines took and made."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from miles_core.errors import MilesError, RunError
from miles_core.router.chat_body import DEFAULT_TOKENS, Answer, ChatCall, Reply
from miles_core.router.chat_messages import parse_reply
from miles_core.router.chat_template import ChatTemplate, go_on
from miles_core.router.sessions import FullError, Session, SessionSettings, SessionStore, Turn
from miles_core.samples import FinishReason, GenerateResult, SamplingParams
from miles_core.serving.wire import DONE, dumps

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

COMPLETIONS = "/v1/chat/completions"
FRUITLESS = 20
"""Answers in a row that were cut off without a token, after which a call fails."""
PAUSE, LONGEST_PAUSE = 0.02, 2.0
"""Seconds between two of them, at first and at most."""
_SESSION = re.compile(r"/sessions/([^/]+)(/.*)?")

Piece = tuple[str, GenerateResult | None]
"""The text of a response so far, and the response once it has ended."""


class Ask(Protocol):
    """How replies are made. ``stream`` says whether texts before the end are of use."""

    def __call__(self, ids: list[int], params: SamplingParams, *, routed: bool, stream: bool) -> AsyncGenerator[Piece, None]:
        """Have the model go on from ``ids``; the last piece has the result."""
        ...


class RoomError(ValueError):
    """There is no room for a token more."""


@dataclass
class _Made:
    """A reply that grows, over several answers where engines cut it off for new weights."""

    output: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    versions: list[tuple[int, int]] = field(default_factory=list)
    finish: FinishReason = FinishReason.ABORT
    routes: bytes | None = None

    def take(self, result: GenerateResult) -> None:
        count = len(result.output_ids)
        self.output += result.output_ids
        self.log_probs += result.log_probs
        self.finish = result.finish_reason
        self.routes = result.routed_experts or self.routes
        if self.versions and self.versions[-1][0] == result.weight_version:
            self.versions[-1] = (result.weight_version, self.versions[-1][1] + count)
        elif count:
            self.versions.append((result.weight_version, count))


class ChatEndpoint:
    """Answers ``/v1/chat/completions``, and what is below ``/sessions``; see ``docs/agents.md``.

    Args:
        template: the model's chat template, or what makes it, in a thread, at the first call that needs it.
        ask: makes replies; None where only sessions that bring their own may ask.
        model: name of the model, for answers.
        context: tokens that the model takes in all; None when nobody knows.
    """

    def __init__(
        self,
        template: ChatTemplate | Callable[[], ChatTemplate],
        ask: Ask | None,
        *,
        model: str = "model",
        context: int | None = None,
        store: SessionStore | None = None,
    ) -> None:
        self.store = store or SessionStore()
        self._template = template
        self._making = asyncio.Lock()
        self._ask = ask
        self._own: dict[str, Ask] = {}
        self._model = model
        self._context = context

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path is one of the endpoint's."""
        return path in (COMPLETIONS, "/v1/models", "/sessions") or path.startswith("/sessions/")

    def open(self, settings: SessionSettings, ask: Ask) -> Session:
        """A session whose replies ``ask`` makes."""
        session = self.store.create(settings)
        self._own[session.id] = ask
        return session

    def close(self, session: Session) -> None:
        """Forget a session of :meth:`open`."""
        self.store.sessions.pop(session.id, None)
        self._own.pop(session.id, None)

    async def handle(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Answer a request. Errors that are the client's have OpenAI's form.

        Args:
            body: of the request.
        """
        try:
            return await self._route(request, body)
        except RoomError as error:
            return _error(400, str(error), "context_length_exceeded")
        except ValueError as error:
            return _error(400, str(error))
        except KeyError:
            return _error(404, f"there is no such session, or nothing at {request.method} {request.path}", "not_found")
        except FullError as error:
            return _error(503, str(error), "too_many_sessions", {"Retry-After": "1"})

    async def _route(self, request: web.Request, body: bytes) -> web.StreamResponse:
        method, path = request.method, request.path
        if (method, path) == ("POST", "/sessions"):
            if self._ask is None:
                raise KeyError(path)
            return _json({"session_id": self.store.create(SessionSettings.read(_object(body))).id})
        session: Session | None = None
        found = _SESSION.fullmatch(path)
        if found is not None:
            session, path = self.store.get(found[1]), found[2] or ""
        if (method, path) == ("POST", COMPLETIONS):
            ask = self._ask if session is None else self._own.get(session.id, self._ask)
            if ask is None:
                raise KeyError(path)
            return await self._complete(request, _object(body), session, ask)
        if (method, path) == ("GET", "/v1/models"):
            return _json({"object": "list", "data": [{"id": self._model, "object": "model", "owned_by": "miles"}]})
        if session is not None and (method, path) == ("GET", ""):
            return _json(self._described(session, request.query.get("branch")))
        if session is not None and (method, path) == ("DELETE", ""):
            self.store.delete(session.id)
            self._own.pop(session.id, None)
            return _json({"session_id": session.id, "deleted": True})
        raise KeyError(path)

    def _described(self, session: Session, branch: str | None) -> dict[str, Any]:
        facts = {"session_id": session.id, "branches": len(session.branches()), "exhausted": session.exhausted}
        if session.last is None:
            return {**facts, "turns": 0}
        if branch is not None and not branch.isdigit():
            raise ValueError("branch must be a number")
        return {**facts, **session.record(None if branch is None else int(branch)).document()}

    async def _complete(self, request: web.Request, body: dict[str, Any], session: Session | None, ask: Ask) -> web.StreamResponse:
        call = ChatCall.read(body, session.settings if session is not None else SessionSettings())
        answer = Answer(call, self._model)
        if session is None:
            # A session that nobody else knows and that ends with the call.
            return await self._answer(request, call, answer, Session(SessionSettings()), ask, {})
        session.busy += 1
        try:
            return await self._answer(request, call, answer, session, ask, {"session_id": session.id})
        except MilesError as error:
            session.failure = error
            raise
        finally:
            session.busy -= 1
            session.touched = self.store.clock()

    async def _answer(
        self, request: web.Request, call: ChatCall, answer: Answer, session: Session, ask: Ask, about: dict[str, Any]
    ) -> web.StreamResponse:
        replies = self._reply(call, session, ask, about)
        if not call.stream:
            async with aclosing(replies):
                async for item in replies:
                    if isinstance(item, Reply):
                        return _json(answer.whole(item))
            raise AssertionError("a call ends with a reply or an error")
        return await _stream(request, replies, answer)

    async def _reply(self, call: ChatCall, session: Session, ask: Ask, about: dict[str, Any]) -> AsyncGenerator[str | Reply, None]:
        """Texts of the reply so far, and at last the reply, which the session has by then."""
        template = await self._loaded()
        parent, known, ids, rerendered = self._prompt(call, session, template)
        before = parent.tokens() if parent is not None else []
        prompt = before + ids
        params = replace(call.params, max_new_tokens=self._room(call, session, parent, len(prompt)))
        made, tries = _Made(), 0
        while made.finish is FinishReason.ABORT:
            have = len(made.output)
            if have >= params.max_new_tokens:
                made.finish = FinishReason.LENGTH
                break
            text = template.decode(made.output, special=False) if have else ""
            asked = replace(
                params,
                max_new_tokens=params.max_new_tokens - have,
                min_new_tokens=max(0, params.min_new_tokens - have),
                # A response that goes on must not draw as it did at its beginning.
                sampling_seed=None if params.sampling_seed is None else params.sampling_seed + have,
            )
            routed = session.settings.routed_experts
            async with aclosing(ask(prompt + made.output, asked, routed=routed, stream=call.stream)) as pieces:
                async for more, result in pieces:
                    if result is not None:
                        made.take(result)
                    elif call.stream:
                        yield text + more
            tries = tries + 1 if len(made.output) == have else 0
            if tries >= FRUITLESS:
                raise _failure("M405", f"engines cut a reply off {tries} times in a row without making a token")
            if tries and made.finish is FinishReason.ABORT:
                # Engines that are getting new weights may say so at once.
                await asyncio.sleep(min(PAUSE * 2**tries, LONGEST_PAUSE))
        if not made.output:
            raise _failure("M444", "an engine answered without a token")
        content = template.decode(made.output, special=False)
        turn = Turn(
            parent,
            call.setting,
            call.messages[known:],
            ids,
            made.output,
            made.log_probs,
            tuple(made.versions),
            parse_reply(content, tools=call.tools is not None, stop=call.params.stop),
            made.finish,
            rerendered,
            made.routes,
            template.decode(ids, special=True) + template.decode(made.output, special=True),
        )
        session.add(turn)
        texts = [template.decode([token], special=True) for token in made.output] if call.details else []
        said = {**about, "rerendered": rerendered} if about else {}
        if about:
            said |= {"turn": len(turn.path()), "branches": len(session.branches())}
        yield Reply(turn.reply, prompt, made.output, made.log_probs, texts, made.finish, made.versions[-1][0], said)

    def _prompt(self, call: ChatCall, session: Session, template: ChatTemplate) -> tuple[Turn | None, int, list[int], bool]:
        """The turn that a call goes on from, the messages that it has, the tokens that come after it, and whether the template
        would write what it has in another way."""
        whole = template.render(call.messages, call.tools, call.template)
        parent, known = session.find(call.messages, call.setting)
        if parent is not None:
            rest = template.after(call.messages, known - 1, call.tools, call.template)
            if rest is not None:
                ids = go_on(parent.output, template.encode(rest))
                text = "".join(turn.text for turn in parent.path()) + template.decode(ids, special=True)
                rerendered = text != whole
                if not rerendered or session.settings.rerender == "append":
                    return parent, known, ids, rerendered
        return None, 0, template.encode(whole), False

    def _room(self, call: ChatCall, session: Session, parent: Turn | None, prompt: int) -> int:
        """Tokens that the reply may have.

        Raises:
            RoomError: none.
        """
        settings = session.settings
        limits = [limit - prompt for limit in (settings.max_context_tokens, self._context) if limit is not None]
        if settings.max_response_tokens is not None:
            first = len(parent.path()[0].ids) if parent is not None else prompt
            limits.append(settings.max_response_tokens - (prompt - first))
        room = min(limits, default=None)
        if room is not None and room <= 0:
            session.exhausted = True
            raise RoomError(f"there is no room for a reply: the messages take {prompt} tokens")
        limits = [limit for limit in (room, call.limit) if limit is not None]
        return min(limits, default=DEFAULT_TOKENS)

    async def _loaded(self) -> ChatTemplate:
        async with self._making:
            if not isinstance(self._template, ChatTemplate):
                self._template = await asyncio.to_thread(self._template)
        return self._template


def model_chat(checkpoint: Path, ask: Ask, template_options: dict[str, Any] | None = None) -> ChatEndpoint:
    """The endpoint of a model, whose tokenizer is loaded by the first call that needs it.

    Args:
        checkpoint: HF directory.
        template_options: further arguments of its chat template.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config")
    context = config.get("max_position_embeddings") or (text or {}).get("max_position_embeddings")

    def template() -> ChatTemplate:
        from transformers import AutoTokenizer

        return ChatTemplate(AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True), template_options)

    return ChatEndpoint(template, ask, model=checkpoint.name, context=context if type(context) is int else None)


async def _stream(request: web.Request, replies: AsyncGenerator[str | Reply, None], answer: Answer) -> web.StreamResponse:
    from aiohttp import web

    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    try:
        async with aclosing(replies):
            async for item in replies:
                found = answer.chunk(item) if isinstance(item, str) else None
                chunks = answer.last_chunks(item) if isinstance(item, Reply) else [found] if found is not None else []
                for chunk in chunks:
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(b"data: " + dumps(chunk) + b"\n\n")
    except Exception as error:
        if not response.prepared:
            raise
        # The status line is gone, so the error travels as an event and the stream ends.
        log.warning("a streamed reply failed: %s", error)
        await response.write(b"data: " + dumps({"error": {"message": str(error), "type": "server_error"}}) + b"\n\n")
    await response.write(DONE)
    await response.write_eof()
    return response


def _failure(code: str, what: str) -> RunError:
    return RunError(code, what, owner="miles-core", fix="see the engines' logs")


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("the body must be a JSON object")
    return document


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    from aiohttp import web

    return web.Response(body=dumps(document), status=status, content_type="application/json", headers=headers)


def _error(status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": " ".join(message.split()), "type": kind, "param": None, "code": code}
    return _json({"error": error}, status, headers)
