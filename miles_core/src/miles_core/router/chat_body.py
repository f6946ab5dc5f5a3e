"""Bodies of ``/v1/chat/completions``: what a request asks for, and answers to it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from miles_core.router.chat_messages import CALL_START, Message, read_messages, wire_message
from miles_core.router.sessions import SessionSettings
from miles_core.samples import FinishReason, SamplingParams
from miles_core.serving.wire import read_params

DEFAULT_TOKENS = 4096
"""Of a reply when neither the request nor the model's context says how many."""
SAMPLING = ("temperature", "top_p", "top_k", "ignore_eos", "stop", "stop_token_ids")
REFUSED = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "tool_choice": ("auto", "none"),
}
"""Fields of which only these values are taken: others would sample from a distribution that log-probs do not tell of, or cannot be
answered."""
PARTIAL = "\ufffd"
"""What a part of a character decodes to."""


@dataclass(frozen=True)
class ChatCall:
    """One request.

    Attributes:
        template: options of the template for this request.
        setting: text that is equal where tools and template options are.
        limit: tokens of the reply that are asked for; None for as many as there is room for.
        details: whether the answer has log-probs and token ids.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    template: dict[str, Any]
    params: SamplingParams
    limit: int | None
    model: str
    stream: bool = False
    usage: bool = False
    details: bool = False

    @property
    def setting(self) -> str:
        """Tools and options of the template, as text."""
        return json.dumps([self.tools, self.template], sort_keys=True)

    @classmethod
    def read(cls, body: Mapping[str, Any], settings: SessionSettings) -> ChatCall:
        """The call in a body.

        Raises:
            ValueError: a field is wrong, or asks for what cannot be done.
        """
        for name, values in REFUSED.items():
            if body.get(name) is not None and body[name] not in values:
                raise ValueError(f"{name} must be {' or '.join(map(str, values))}, not {body[name]!r:.60}")
        shape = body.get("response_format")
        if isinstance(shape, Mapping) and shape.get("type", "text") != "text":
            raise ValueError(f"response_format {shape['type']!r:.60} is not taken; text is")
        tools, template, options = body.get("tools"), body.get("chat_template_kwargs"), body.get("stream_options")
        if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
            raise ValueError("tools must be a list of objects")
        if template is not None and not isinstance(template, dict):
            raise ValueError("chat_template_kwargs must be an object")
        limits = [
            value
            for value in (body.get("max_completion_tokens"), body.get("max_tokens"), settings.sampling.get("max_new_tokens"))
            if value is not None
        ]
        if not all(type(value) is int and value > 0 for value in limits):
            raise ValueError("max_tokens must be a whole number above 0")
        asked = {name: body[name] for name in SAMPLING if body.get(name) is not None}
        fixed = {name: value for name, value in settings.sampling.items() if name not in ("stop", "stop_token_ids")}
        seed = {} if body.get("seed") is None else {"sampling_seed": body["seed"]}
        params = read_params({**asked, **seed, "min_new_tokens": body.get("min_tokens"), **fixed}, "the request")
        own = read_params({name: settings.sampling.get(name) for name in ("stop", "stop_token_ids")}, "sampling_params")
        params = replace(
            params,
            stop=tuple(dict.fromkeys((*params.stop, *own.stop))),
            stop_token_ids=tuple(dict.fromkeys((*params.stop_token_ids, *own.stop_token_ids))),
            skip_special_tokens=True,
        )
        return cls(
            read_messages(body.get("messages")),
            (tools or None) if body.get("tool_choice") != "none" else None,
            template or {},
            params,
            min(limits, default=None),
            str(body.get("model") or ""),
            stream=bool(body.get("stream")),
            usage=isinstance(options, Mapping) and bool(options.get("include_usage")),
            details=bool(body.get("logprobs") or body.get("return_token_ids")),
        )


@dataclass
class Reply:
    """What the model said to one request.

    Attributes:
        prompt_ids: tokens in front of it.
        pieces: text of each of its tokens.
        about: of the session, for the answer.
    """

    message: Message
    prompt_ids: Sequence[int]
    output: Sequence[int]
    log_probs: Sequence[float]
    pieces: Sequence[str]
    finish: FinishReason
    version: int
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def finish_reason(self) -> str:
        """In OpenAI's words."""
        return "tool_calls" if self.message.get("tool_calls") else "length" if self.finish is FinishReason.LENGTH else "stop"

    def usage(self) -> dict[str, int]:
        """Counts of tokens."""
        prompt, output = len(self.prompt_ids), len(self.output)
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    def details(self) -> dict[str, Any]:
        """Log-probs and token ids, for a choice."""
        tokens = zip(self.pieces, self.log_probs, self.output, strict=True)
        content = [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": [], "token_id": token}
            for text, value, token in tokens
        ]
        return {
            "logprobs": {"content": content, "refusal": None},
            "input_token_ids": list(self.prompt_ids),
            "output_token_ids": list(self.output),
        }


class Answer:
    """Documents that answer a call: one, or the chunks of a stream."""

    def __init__(self, call: ChatCall, model: str) -> None:
        self._call = call
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": call.model or model}
        self._markers = (*call.params.stop, *((CALL_START,) if call.tools else ()))
        self._sent = 0
        self._began = False

    def whole(self, reply: Reply) -> dict[str, Any]:
        """The answer in one document."""
        choice = {"index": 0, "message": wire_message(reply.message), "finish_reason": reply.finish_reason, "logprobs": None}
        if self._call.details:
            choice |= reply.details()
        about = {"weight_version": str(reply.version), **reply.about}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": reply.usage(), **about}

    def chunk(self, text: str) -> dict[str, Any] | None:
        """What is new in ``text``, all that there is of a reply so far; None when nothing can be told yet.

        A text that ends the reply, or begins a call of a tool, is no part of the message: what may become one waits.
        """
        end = min((at for marker in self._markers if (at := text.find(marker)) >= 0), default=-1)
        if end < 0:
            waits = (n for marker in self._markers for n in range(len(marker) - 1, 0, -1) if text.endswith(marker[:n]))
            end = len(text.rstrip(PARTIAL)) - max(waits, default=0)
        if end <= self._sent:
            return None
        new, self._sent = text[self._sent : end], end
        return self._chunk({"content": new})

    def last_chunks(self, reply: Reply) -> list[dict[str, Any]]:
        """What ends a stream."""
        message = wire_message(reply.message)
        calls = [{"index": i, **call} for i, call in enumerate(message.get("tool_calls", ()))]
        chunks = []
        text = message["content"] or ""
        if not calls and len(text) > self._sent:
            chunks.append(self._chunk({"content": text[self._sent :]}))
        if calls:
            chunks.append(self._chunk({"tool_calls": calls}))
        further = reply.details() if self._call.details else {}
        chunks.append(self._chunk({}, finish_reason=reply.finish_reason, **further))
        chunks[-1] |= {"weight_version": str(reply.version), **reply.about}
        if self._call.usage:
            chunks.append({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": reply.usage()})
        return chunks

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **further: Any) -> dict[str, Any]:
        if not self._began:
            delta, self._began = {"role": "assistant", **delta}, True
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **further}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
