"""The router's middlewares before a real engine: texts turn back into the very tokens, and into the routes of their experts."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from aiohttp import web
from transformers import AutoTokenizer

from miles_core.router import RouterSettings, exchange_of, router_app
from miles_core.router.routing_capture import RoutingCapture
from miles_core.router.text_cache import TextCache
from miles_core.serving import ServerThread

PAGE = Path(__file__).parents[3] / "docs" / "agents.md"
SAMPLED = {"temperature": 1.0, "max_new_tokens": 6, "ignore_eos": True}


class Spy:
    """What goes to the engine."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def __call__(
        self, request: web.Request, call_next: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.bodies.append(await exchange_of(request).document())
        return await call_next(request)


Call = Callable[[str, dict[str, Any] | None], Any]


@pytest.fixture
def router() -> Iterator[Callable[..., Call]]:
    """Starts a router before an engine; gives its calls."""
    servers = []

    def start(url: str, middlewares: Sequence[Any], **settings: Any) -> Call:
        servers.append(ServerThread(router_app(RouterSettings(**settings), [url], middlewares)))
        base = servers[-1].start()

        def call(path: str, body: dict[str, Any] | None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            with urlopen(Request(base + path, data), timeout=30) as answer:
                found = answer.read()
            if found.startswith(b"data:"):
                return [json.loads(event[5:]) for event in found.split(b"\n\n")[:-2]]
            return json.loads(found)

        return call

    yield start
    for server in servers:
        server.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_texts_turn_back_into_the_tokens_that_made_them(serve, checkpoint, router, stream: bool) -> None:
    tokenizer, spy = AutoTokenizer.from_pretrained(checkpoint()), Spy()
    call = router(serve().url, [spy, TextCache(tokenizer)])
    asked = {"return_logprob": True, "stream": stream}
    text, known, log_probs, mask = "HELLO", tokenizer.encode("HELLO"), [0.0] * 5, [0] * 5
    for turn in range(3):
        answer = call("/generate", {"text": text, "sampling_params": {**SAMPLED, "sampling_seed": turn}, **asked})
        answer = answer[-1] if stream else answer
        # The engine gets ids, and those of earlier answers are the ones that it made.
        assert spy.bodies[-1]["input_ids"] == known
        assert "text" not in spy.bodies[-1]
        pairs = answer["meta_info"]["output_token_logprobs"]
        text, known = text + answer["text"] + "AB", known + [pair[1] for pair in pairs] + tokenizer.encode("AB")
        log_probs, mask = log_probs + [pair[0] for pair in pairs] + [0.0] * 2, mask + [1] * 6 + [0] * 2
    found = call("/retrieve_from_text", {"text": text, "return_logp": True})
    assert (found["tokens"], found["loss_mask"], found["rollout_logp"]) == (known, mask, log_probs)
    assert found["token_length"] == found["loss_mask_length"] == len(known)
    assert found["weight_versions"] == [0] * (len(known) - 2) + [-1] * 2
    assert found["response"] == text
    assert "rollout_logp" not in call("/retrieve_from_text", {"text": text, "return_logp": False})


def test_a_batch_of_texts(serve, checkpoint, router) -> None:
    tokenizer, spy = AutoTokenizer.from_pretrained(checkpoint()), Spy()
    call = router(serve().url, [spy, TextCache(tokenizer)])
    answers = call("/generate", {"text": ["AB", "CDE"], "sampling_params": SAMPLED, "return_logprob": True})
    for text, answer in zip(("AB", "CDE"), answers, strict=True):
        found = call("/retrieve_from_text", {"text": text + answer["text"]})
        assert found["tokens"] == tokenizer.encode(text) + [pair[1] for pair in answer["meta_info"]["output_token_logprobs"]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_routes_are_kept_for_texts(serve, checkpoint, router, stream: bool, wanted: bool) -> None:
    tokenizer, spy = AutoTokenizer.from_pretrained(checkpoint("qwen3_moe")), Spy()
    served = serve("qwen3_moe", routes=True)
    call = router(served.url, [spy, TextCache(tokenizer), RoutingCapture()])
    body = {"text": "HELLO", "sampling_params": SAMPLED, "return_logprob": True, "stream": stream}
    answer = call("/generate", {**body, **({"return_routed_experts": True} if wanted else {})})
    answer = answer[-1] if stream else answer
    assert spy.bodies[-1]["return_routed_experts"] is True
    assert ("routed_experts" in answer["meta_info"]) == wanted
    found = call("/retrieve_from_text", {"text": "HELLO" + answer["text"]})
    tokens = tokenizer.encode("HELLO") + [pair[1] for pair in answer["meta_info"]["output_token_logprobs"]]
    assert found["tokens"] == tokens
    assert found["routed_tokens"] == len(tokens) - 1
    # The engine itself, asked for the same tokens and one more, says the same routes.
    exact = exact_routes(served.url, tokens)
    assert exact.shape == (len(tokens), 2, 2)
    assert (routes_of(found["routed_experts"]) == exact[:-1]).all()
    # By tokens too, and for what is known of them.
    assert call("/retrieve_routed_experts", {"input_ids": tokens})["routed_experts"] == found["routed_experts"]
    assert call("/retrieve_routed_experts", {"input_ids": [*tokens[:4], 9, 9]})["routed_tokens"] == 4
    assert call("/retrieve_routed_experts", {"input_ids": [63]}) == {"routed_experts": None, "routed_tokens": 0}
    if wanted and not stream:
        assert answer["meta_info"]["routed_experts"] == found["routed_experts"]


def test_a_session_keeps_the_routes_of_all_its_turns(serve, checkpoint, router, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoint("qwen3_moe"), model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] | upper + m.content + '<|end|>' }}{% endfor %}"
    tokenizer.save_pretrained(model)
    served = serve("qwen3_moe", routes=True)
    call = router(served.url, [], checkpoint=model)
    session = call("/sessions", {"routed_experts": True})["session_id"]
    messages = [{"role": "user", "content": "HELLO"}]
    for seed in range(2):
        answer = call(f"/sessions/{session}/v1/chat/completions", {"messages": messages, "max_tokens": 6, "seed": seed})
        messages += [answer["choices"][0]["message"], {"role": "user", "content": "ON"}]
    record = call(f"/sessions/{session}", None)
    tokens = record["prompt_ids"] + record["response_ids"]
    assert record["turns"] == 2
    assert (routes_of(record["routed_experts"]) == exact_routes(served.url, tokens)[:-1]).all()


def test_the_example_of_the_page(serve, checkpoint, router) -> None:
    found = re.search(
        r"```python\n(from miles_core.router import exchange_of\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None
    made: dict[str, Any] = {}
    exec(found[1], made)
    call = router(serve().url, [made["shorter"]])
    params = {"max_new_tokens": 110, "ignore_eos": True}
    answer = call("/generate", {"input_ids": [5, 6], "sampling_params": params, "return_logprob": True})
    assert answer["meta_info"]["completion_tokens"] == 100


def exact_routes(url: str, tokens: list[int]) -> np.ndarray:
    """What the engine itself says of these tokens, asked for one more."""
    params = {"temperature": 0.0, "max_new_tokens": 1}
    body = {"input_ids": tokens, "sampling_params": params, "return_logprob": True, "return_routed_experts": True}
    with urlopen(Request(url + "/generate", json.dumps(body).encode()), timeout=30) as response:
        return routes_of(json.load(response)["meta_info"]["routed_experts"])


def routes_of(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<i4").reshape(-1, 2, 2)
