"""A chat endpoint over HTTP before an engine that says what a test wants, with a template like Qwen's."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from aiohttp import web
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from miles_core.router.chat import ChatEndpoint, Piece
from miles_core.router.chat_template import ChatTemplate
from miles_core.samples import FinishReason, GenerateResult, SamplingParams
from miles_core.serving import ServerThread

TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{%- endif %}
{%- else %}
{%- set content = m.content %}
{%- if m.role == 'assistant' and loop.index0 < ns.last and '</think>' in content %}
{%- set content = content.split('</think>')[-1].lstrip() %}
{%- endif %}
{{- '<|im_start|>' + m.role + '\\n' + content }}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, and some for two, which make a text's own tokens others than those that a model chose."""
    words = [*SPECIAL, *map(chr, range(32, 127)), "\n", "te", "st"]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|pad|>"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"te|st|[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    fast.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    made = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<|pad|>", eos_token="<|im_end|>")
    made.chat_template = TEMPLATE
    return made


Said = str | tuple[str, FinishReason] | tuple[str, FinishReason, int]


@dataclass
class Script:
    """An engine that says one text after another, a token for each character, as weights of version 3 unless a line says more.

    Attributes:
        asked: ids and parameters of every request.
        before: called in a thread before a request is answered.
        hang: set when a request began, which then is not answered, and when it was given up.
    """

    tokenizer: Any
    lines: list[Said]
    asked: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    before: Callable[[], object] | None = None
    hang: tuple[threading.Event, threading.Event] | None = None

    async def __call__(self, ids: list[int], params: SamplingParams, *, routed: bool, stream: bool) -> AsyncGenerator[Piece, None]:
        said = self.lines[len(self.asked)]
        self.asked.append((list(ids), params))
        if self.before is not None:
            await asyncio.to_thread(self.before)
        if self.hang is not None:
            started, ended = self.hang
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        text, reason, version = (*(said if isinstance(said, tuple) else (said, FinishReason.STOP)), 3)[:3]
        characters = [self.tokenizer.convert_tokens_to_ids(character) for character in text]
        made = [*characters, self.tokenizer.eos_token_id] if reason is FinishReason.STOP else characters
        made = made[: params.max_new_tokens]
        reason = FinishReason.LENGTH if reason is FinishReason.STOP and len(made) <= len(characters) else reason
        for end in range(1, len(characters)) if stream else ():
            yield text[:end], None
        log_probs = tuple(-0.25 - 0.5 * i for i in range(len(made)))
        routes = bytes(4 * (len(ids) + len(made) - 1)) if routed else None
        yield text, GenerateResult("", tuple(made), log_probs, reason, version, text, routed_experts=routes)


@dataclass
class Client:
    """Plain HTTP to an endpoint."""

    url: str
    engine: Script

    def call(self, method: str, path: str, body: object = None, code: int = 200) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self.url + path, data, method=method), timeout=20) as answer:
                status, found = answer.status, answer.read()
        except HTTPError as error:
            status, found = error.code, error.read()
        assert status == code, found
        if found.startswith(b"data:"):
            assert found.endswith(b"data: [DONE]\n\n")
            return [json.loads(event[5:]) for event in found.decode().split("\n\n")[:-2]]
        return json.loads(found)

    def session(self, **settings: Any) -> str:
        return str(self.call("POST", "/sessions", settings)["session_id"])

    def chat(self, session: str | None, messages: list[dict[str, Any]], code: int = 200, **further: Any) -> Any:
        path = "/v1/chat/completions" if session is None else f"/sessions/{session}/v1/chat/completions"
        return self.call("POST", path, {"messages": messages, **further}, code)


@pytest.fixture
def serve(tokenizer: PreTrainedTokenizerFast) -> Iterator[Callable[..., Client]]:
    """An endpoint before an engine that says these lines."""
    threads: list[ServerThread] = []

    def start(*lines: Said, **further: Any) -> Client:
        engine = Script(tokenizer, list(lines))
        endpoint = ChatEndpoint(lambda: ChatTemplate(tokenizer), engine, **further)

        async def handle(request: web.Request) -> web.StreamResponse:
            return await endpoint.handle(request, await request.read())

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        threads.append(ServerThread(app))
        return Client(threads[-1].start(), engine)

    yield start
    for thread in threads:
        thread.stop()
