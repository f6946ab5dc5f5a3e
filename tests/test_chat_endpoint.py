"""Chats with a real engine behind the router: the tokens and log-probs of a session are those of the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from miles_core.config import ClusterOptions, RoutingOptions
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.router import RouterSettings, router_app
from miles_core.serving import ServerThread
from miles_transformers.engine import TransformersEngine
from miles_transformers.options import TransformersOptions

SEED = {"temperature": 1.0, "max_tokens": 12}
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def engine(task) -> Iterator[str]:
    options = TransformersOptions(kv_cache_tokens=4096, threads=1)
    made = TransformersEngine(Config.of(options, RoutingOptions(), ClusterOptions(device="cpu")))
    yield made.start(EngineLaunch(rank=0, model=task.model))
    made.stop()


@pytest.fixture(scope="module")
def call(task, engine: str) -> Iterator[Call]:
    """Calls the router."""
    server = ServerThread(router_app(RouterSettings(checkpoint=task.model), [engine]))
    url = server.start()

    def make(method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(url + path, data, method=method), timeout=60) as answer:
            found = answer.read()
        if found.startswith(b"data:"):
            return [json.loads(event[5:]) for event in found.split(b"\n\n")[:-2]]
        return json.loads(found)

    yield make
    server.stop()


@pytest.fixture(scope="module")
def log_probs(task) -> Callable[[list[int]], list[float]]:
    """Of every token but the first, by one plain pass over all of them."""
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32).eval()

    def score(ids: list[int]) -> list[float]:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = torch.log_softmax(model(input_ids=tokens, use_cache=False).logits[0, :-1], -1)
        return logits.gather(1, tokens[0, 1:, None])[:, 0].tolist()

    return score


def test_a_session_has_the_tokens_and_log_probs_of_the_model(task, call: Call, log_probs) -> None:
    session = call("POST", "/sessions", {})["session_id"]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "sort 73051"}]
    details = []
    for turn in range(3):
        answer = call(
            "POST", f"/sessions/{session}/v1/chat/completions", {"messages": messages, "logprobs": True, "seed": turn, **SEED}
        )
        details.append(answer["choices"][0])
        messages += [answer["choices"][0]["message"], {"role": "user", "content": f"and {turn}1302"}]
    record = call("GET", f"/sessions/{session}")
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    first = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    assert record["prompt_ids"] == tokenizer.encode(first, add_special_tokens=False)
    assert (record["turns"], record["branches"], sum(record["loss_mask"])) == (
        3,
        1,
        sum(len(d["output_token_ids"]) for d in details),
    )
    whole = record["prompt_ids"] + record["response_ids"]
    # What the engine was given at each turn is what the record has up to there.
    for each in details:
        known = each["input_token_ids"] + each["output_token_ids"]
        assert whole[: len(known)] == known
    exact = log_probs(whole)[len(record["prompt_ids"]) - 1 :]
    pairs = [pair for *pair, mask in zip(record["log_probs"], exact, record["loss_mask"], strict=True) if mask]
    assert max(abs(ours - theirs) for ours, theirs in pairs) < 1e-4
    made = [token for token, mask in zip(record["response_ids"], record["loss_mask"], strict=True) if mask]
    assert made == [token for each in details for token in each["output_token_ids"]]


def test_a_stream_and_a_plain_call_say_the_same(call: Call) -> None:
    body = {"messages": [{"role": "user", "content": "sort 12345"}], "seed": 3, "return_token_ids": True, **SEED}
    (whole,) = call("POST", "/v1/chat/completions", body)["choices"]
    chunks = [chunk["choices"][0] for chunk in call("POST", "/v1/chat/completions", {**body, "stream": True})]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == whole["message"]["content"]
    assert chunks[-1]["output_token_ids"] == whole["output_token_ids"]
    assert chunks[-1]["logprobs"] == whole["logprobs"]
    asked = {"temperature": 1.0, "max_new_tokens": 12, "sampling_seed": 3}
    plain = call("POST", "/generate", {"input_ids": whole["input_token_ids"], "sampling_params": asked, "return_logprob": True})
    assert [[entry["logprob"], entry["token_id"], None] for entry in whole["logprobs"]["content"]] == plain["meta_info"][
        "output_token_logprobs"
    ]


def test_what_the_engine_refuses_is_told(call: Call, task: Any) -> None:
    from urllib.error import HTTPError

    long = {"messages": [{"role": "user", "content": "sort " + "1" * 600}], **SEED}
    with pytest.raises(HTTPError) as raised:
        call("POST", "/v1/chat/completions", long)
    assert raised.value.code == 400
    assert json.load(raised.value)["error"]["code"] == "context_length_exceeded"
    assert call("GET", "/v1/models")["data"][0]["id"] == Path(task.model).name
