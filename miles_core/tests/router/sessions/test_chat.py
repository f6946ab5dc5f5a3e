"""The chat endpoint: its answers, and the tokens that its sessions keep."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import pairwise

import pytest

from miles_core.rollout.external.trajectory import read_trajectory
from miles_core.router.sessions import SessionStore
from miles_core.samples import FinishReason

USER = {"role": "user", "content": "a test"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


def assistant(answer) -> dict:
    return answer["choices"][0]["message"]


def check(client, session, **which) -> dict:
    """The session's record, after a look at what must hold for each."""
    query = "".join(f"?{name}={value}" for name, value in which.items())
    record = client.call("GET", f"/sessions/{session}{query}")
    lengths = {name: len(record[name]) for name in ("response_ids", "log_probs", "loss_mask", "weight_versions")}
    assert len(set(lengths.values())) == 1, lengths
    assert all((value == 0.0) == (mask == 0) for value, mask in zip(record["log_probs"], record["loss_mask"], strict=True))
    return record


def text_of(client, record, keep=None) -> str:
    pairs = zip(record["response_ids"], record["loss_mask"], strict=True)
    return client.engine.tokenizer.decode([token for token, mask in pairs if keep is None or mask == keep])


def test_an_answer_has_the_form_of_openai_and_the_tokens(serve) -> None:
    client = serve("yes", "yes")
    answer = client.chat(None, [USER], logprobs=True, model="mine", max_tokens=9, temperature=0.5, top_p=0.9, seed=7)
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "mine"
    assert choice["message"] == {"role": "assistant", "content": "yes"}
    assert choice["finish_reason"] == "stop"
    ids, params = client.engine.asked[0]
    assert choice["input_token_ids"] == ids
    assert choice["output_token_ids"] == [entry["token_id"] for entry in choice["logprobs"]["content"]]
    assert client.engine.tokenizer.decode(choice["output_token_ids"]) == "yes<|im_end|>"
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["y", "e", "s", "<|im_end|>"]
    assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == [-0.25, -0.75, -1.25, -1.75]
    assert answer["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 4, "total_tokens": len(ids) + 4}
    assert answer["weight_version"] == "3"
    assert (params.max_new_tokens, params.temperature, params.top_p, params.sampling_seed) == (9, 0.5, 0.9, 7)
    # Without being asked, an answer does not carry tokens back and forth.
    assert "input_token_ids" not in client.chat(None, [USER])["choices"][0]
    assert client.call("GET", "/v1/models")["data"][0]["id"] == "model"


def test_turns_extend_the_very_tokens(serve) -> None:
    # The model writes "test" with four tokens, and the tokenizer with two: what was sampled must stay.
    client = serve("test one", "test two", "done")
    session, messages = client.session(), [USER]
    for _ in range(3):
        messages += [assistant(client.chat(session, messages)), {"role": "user", "content": "go on with the test"}]
    record = check(client, session)
    whole = record["prompt_ids"] + record["response_ids"]
    for (ids, _), (later, _) in pairwise(client.engine.asked):
        assert later[: len(ids)] == ids
    assert client.engine.asked[-1][0] == whole[: -len("done") - 1]
    tokenizer = client.engine.tokenizer
    template = tokenizer.apply_chat_template(messages[:-1], tokenize=False)
    assert tokenizer.decode(whole) + "\n" == template
    assert whole != tokenizer.encode(template.rstrip("\n"), add_special_tokens=False)
    assert text_of(client, record, 1) == "test one<|im_end|>test two<|im_end|>done<|im_end|>"
    assert text_of(client, record, 0) == "\n<|im_start|>user\ngo on with the test<|im_end|>\n<|im_start|>assistant\n" * 2
    assert record["weight_versions"] == [3] * len(record["response_ids"])
    assert record["weight_version"] == 3
    assert (record["turns"], record["branches"], record["rerendered"]) == (3, 1, 0)
    assert record["finish_reason"] == "stop"


@pytest.mark.parametrize("rerender", ["append", "branch"])
@pytest.mark.parametrize("echo", ["whole", "without thoughts"])
def test_a_template_that_strips_thoughts(serve, rerender: str, echo: str) -> None:
    client = serve("<think>hm</think>\n\nyes", "no")
    session = client.session(rerender=rerender)
    reply = assistant(client.chat(session, [USER]))
    assert reply["content"] == "<think>hm</think>\n\nyes"
    if echo == "without thoughts":
        reply = {"role": "assistant", "content": "yes"}
    answer = client.chat(session, [USER, reply, {"role": "user", "content": "sure?"}])
    record = check(client, session)
    prompt = client.engine.tokenizer.decode(client.engine.asked[1][0])
    if rerender == "append":
        # The tokens stay, with the thoughts; only what the new message adds is appended.
        assert client.engine.asked[1][0][: len(record["prompt_ids"])] == client.engine.asked[0][0]
        assert "<think>hm</think>\n\nyes<|im_end|>\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n" in prompt
        assert (record["branches"], record["rerendered"], answer["rerendered"]) == (1, 1, True)
        assert text_of(client, record, 1) == "<think>hm</think>\n\nyes<|im_end|>no<|im_end|>"
    else:
        # The prompt is the template's, and what was said before is not trained on in this branch.
        assert "think" not in prompt
        assert (record["branches"], record["turns"]) == (2, 1)
        assert text_of(client, record) == "no<|im_end|>"
        assert text_of(client, check(client, session, branch=0), 1) == "<think>hm</think>\n\nyes<|im_end|>"


def test_histories_that_differ_are_branches(serve) -> None:
    client = serve("one", "two", "three", "four", "five")
    session, further = client.session(), {"role": "user", "content": "more"}
    first = assistant(client.chat(session, [USER]))
    client.chat(session, [USER, first, further])
    # The same again, as a client that retries: a branch from the first turn.
    client.chat(session, [USER, first, further])
    assert client.engine.asked[2][0] == client.engine.asked[1][0]
    # A history that was summed up begins a branch of its own, and so do other tools.
    client.chat(session, [{"role": "user", "content": "in short"}, further])
    client.chat(session, [USER, first, further], tools=TOOLS)
    records = [check(client, session, branch=i) for i in range(4)]
    assert [text_of(client, record, 1) for record in records] == [
        "one<|im_end|>two<|im_end|>",
        "one<|im_end|>three<|im_end|>",
        "four<|im_end|>",
        "five<|im_end|>",
    ]
    assert check(client, session)["response_ids"] == records[3]["response_ids"]
    assert "no" in client.call("GET", f"/sessions/{session}?branch=4", code=400)["error"]["message"]


def test_of_equal_turns_the_newest_goes_on(serve) -> None:
    client = serve("one", "one", "two")
    session = client.session()
    client.chat(session, [USER])
    reply = assistant(client.chat(session, [USER]))
    client.chat(session, [USER, reply, USER])
    assert [check(client, session, branch=i)["turns"] for i in range(2)] == [1, 2]


def test_tools_are_rendered_and_calls_are_parsed(serve) -> None:
    said = 'let me see\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>{"name": "add"}</tool_call>'
    client = serve(said, "it is 2", said)
    session = client.session()
    answer = client.chat(session, [USER], tools=TOOLS)
    reply = assistant(answer)
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert reply["content"] == "let me see"
    functions = [call["function"] for call in reply["tool_calls"]]
    assert functions == [{"name": "add", "arguments": '{"a": 1}'}, {"name": "add", "arguments": "{}"}]
    assert '"name": "add"' in client.engine.tokenizer.decode(client.engine.asked[0][0])
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "2"} for call in reply["tool_calls"]]
    client.chat(session, [USER, reply, *results], tools=TOOLS)
    record = check(client, session)
    assert record["branches"] == 1
    assert text_of(client, record, 1) == f"{said}<|im_end|>it is 2<|im_end|>"
    assert text_of(client, record, 0) == (
        "\n<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # Who gives no tools gets the text.
    assert assistant(client.chat(None, [USER]))["content"] == said


@pytest.mark.parametrize(
    "said", ["<tool_call>add 1</tool_call>", '<tool_call>{"name": 3}</tool_call>', "<tool_call>[]</tool_call>"]
)
def test_a_call_that_is_no_json_stays_text(serve, said: str) -> None:
    answer = serve(said).chat(None, [USER], tools=TOOLS)
    assert assistant(answer) == {"role": "assistant", "content": said}
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_stop_text_is_in_the_tokens_and_not_in_the_message(serve) -> None:
    client = serve(("act now Observation:", FinishReason.ABORT), ("", FinishReason.STOP), "fine")
    session = client.session()
    reply = assistant(client.chat(session, [USER], stop=["Observation:"]))
    assert reply["content"] == "act now "
    assert client.engine.asked[0][1].stop == ("Observation:",)
    client.chat(session, [USER, {**reply, "content": "act now"}, {"role": "user", "content": "7"}])
    record = check(client, session)
    assert record["branches"] == 1
    assert text_of(client, record, 1) == "act now Observation:<|im_end|>fine<|im_end|>"


def test_a_reply_that_is_cut_off_goes_on_and_each_token_has_its_version(serve) -> None:
    client = serve(("he", FinishReason.ABORT, 3), ("", FinishReason.ABORT, 4), ("llo", FinishReason.STOP, 4))
    session = client.session()
    assert assistant(client.chat(session, [USER], seed=5))["content"] == "hello"
    record = check(client, session)
    assert record["weight_versions"] == [3, 3, 4, 4, 4, 4]
    assert record["weight_version"] == 3
    first, second, third = client.engine.asked
    assert second[0] == third[0] == first[0] + record["response_ids"][:2]
    # It neither draws again what it drew, nor makes more than was asked for.
    assert [params.sampling_seed for _, params in client.engine.asked] == [5, 7, 7]
    assert third[1].max_new_tokens == first[1].max_new_tokens - 2


def test_a_reply_cut_by_its_limit_is_ended_by_the_template(serve) -> None:
    client = serve("hello there", "yes")
    session = client.session()
    answer = client.chat(session, [USER], max_completion_tokens=5)
    assert answer["choices"][0]["finish_reason"] == "length"
    client.chat(session, [USER, assistant(answer), {"role": "user", "content": "on"}])
    record = check(client, session)
    assert text_of(client, record, 1) == "helloyes<|im_end|>"
    assert text_of(client, record, 0).startswith("<|im_end|>\n<|im_start|>user\non<|im_end|>")


def test_limits_of_a_session(serve) -> None:
    client = serve("hello", "yes")
    session = client.session(max_response_tokens=50, sampling_params={"temperature": 0.7, "stop": ["END"], "max_new_tokens": 20})
    messages = [USER]
    messages += [assistant(client.chat(session, messages, temperature=0, max_tokens=90, stop="X")), USER]
    params = client.engine.asked[0][1]
    # The session's own sampling comes before the client's, and limits and stop texts of both hold.
    assert (params.temperature, params.max_new_tokens, params.stop) == (0.7, 20, ("X", "END"))
    error = client.chat(session, [*messages, {"role": "user", "content": "x" * 60}], code=400)["error"]
    assert error["code"] == "context_length_exceeded"
    assert check(client, session)["exhausted"] is True
    # What was refused is not in the record.
    assert check(client, session)["turns"] == 1
    whole = client.session(max_context_tokens=len(client.engine.asked[0][0]) + 3)
    assert client.chat(whole, [USER])["choices"][0]["finish_reason"] == "length"


def test_routes_are_kept_for_all_tokens(serve) -> None:
    client = serve("one", "two")
    session = client.session(routed_experts=True)
    reply = assistant(client.chat(session, [USER]))
    client.chat(session, [USER, reply, USER])
    record = check(client, session)
    tokens = len(record["prompt_ids"]) + len(record["response_ids"])
    assert len(record["routed_experts"]) * 3 // 4 // 4 == pytest.approx(tokens - 1, abs=1)


def test_requests_of_a_session_run_at_the_same_time(serve) -> None:
    client = serve("one", "two", "three")
    session, gate = client.session(), threading.Barrier(2, timeout=20)
    client.engine.before = gate.wait
    others = [{"role": "user", "content": "another"}]
    with ThreadPoolExecutor(2) as threads:
        # Each is asked before the other is answered.
        answers = list(threads.map(lambda messages: client.chat(session, messages), ([USER], others)))
    client.engine.before = None
    client.chat(session, [USER, assistant(answers[0]), USER])
    records = [check(client, session, branch=i) for i in range(2)]
    assert sorted(record["turns"] for record in records) == [1, 2]
    assert check(client, session)["turns"] == 2


def test_a_turn_whose_client_went_away_is_not_kept(serve) -> None:
    client = serve("one", "two")
    session, started, ended = client.session(), threading.Event(), threading.Event()
    client.engine.hang = (started, ended)
    connection = HTTPConnection(client.url.removeprefix("http://"), timeout=20)
    connection.request("POST", f"/sessions/{session}/v1/chat/completions", json.dumps({"messages": [USER]}))
    assert started.wait(20)
    connection.close()
    assert ended.wait(20)
    client.engine.hang = None
    assert client.call("GET", f"/sessions/{session}")["turns"] == 0
    assert assistant(client.chat(session, [USER]))["content"] == "two"


def test_a_record_is_a_trajectory(serve) -> None:
    client = serve("one", "two")
    session = client.session()
    reply = assistant(client.chat(session, [USER]))
    client.chat(session, [USER, reply, USER])
    record = client.call("GET", f"/sessions/{session}")
    sample = read_trajectory({**record, "instance_id": 1, "uid": "a", "reward": 0.5}).sample(0, 0, "")
    sample.check()
    assert (sample.tokens, sample.loss_mask) == (record["prompt_ids"] + record["response_ids"], record["loss_mask"])
    assert sample.weight_versions == [(3, len(record["response_ids"]))]


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("stop", [None, ["END"]])
@pytest.mark.parametrize(
    "said", ["plain", "EN, <tool and more", 'so\n<tool_call>{"name": "add", "arguments": {}}</tool_call>', "a END"]
)
def test_a_stream_has_what_the_answer_has(serve, tools, stop, said: str) -> None:
    client = serve(said, said)
    further = {"tools": tools, "stop": stop, "logprobs": True}
    whole = client.chat(None, [USER], **further)
    session = client.session()
    chunks = client.chat(session, [USER], stream=True, stream_options={"include_usage": True}, **further)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0]["role"] == "assistant"
    message = assistant(whole)
    assert "".join(delta.get("content", "") for delta in deltas).strip() == (message["content"] or "").strip()
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["function"] for call in calls] == [call["function"] for call in message.get("tool_calls", ())]
    last = chunks[-2]["choices"][0]
    assert last["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert last["output_token_ids"] == whole["choices"][0]["output_token_ids"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert check(client, session)["response_ids"] == whole["choices"][0]["output_token_ids"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts that are text"),
        ({"messages": [USER], "n": 2}, "n must be 1"),
        ({"messages": [USER], "logit_bias": {"3": 1}}, "logit_bias"),
        ({"messages": [USER], "temperature": -1}, "temperature"),
        ({"messages": [USER], "max_tokens": 0}, "max_tokens"),
        ({"messages": [USER], "tools": "add"}, "tools"),
        ({"messages": [USER], "response_format": {"type": "json_object"}}, "json_object"),
        ([], "JSON object"),
    ],
)
def test_what_cannot_be_answered_is_refused(serve, body, why: str) -> None:
    error = serve().call("POST", "/v1/chat/completions", body, code=400)["error"]
    assert why in error["message"]
    assert error["type"] == "invalid_request_error"


def test_sessions_come_and_go(serve) -> None:
    clock = [0.0]
    client = serve("hi", store=SessionStore(most=2, idle=10.0, clock=lambda: clock[0]))
    first, second = client.session(), client.session()
    assert client.call("GET", f"/sessions/{first}") == {"session_id": first, "branches": 0, "exhausted": False, "turns": 0}
    assert client.call("POST", "/sessions", {}, code=503)["error"]["code"] == "too_many_sessions"
    clock[0] = 8.0
    client.chat(second, [USER])
    clock[0] = 11.0
    third = client.session()
    client.call("GET", f"/sessions/{first}", code=404)
    assert client.call("DELETE", f"/sessions/{second}") == {"session_id": second, "deleted": True}
    client.call("DELETE", f"/sessions/{second}", code=404)
    client.chat(second, [USER], code=404)
    client.call("GET", f"/sessions/{third}/v1/nothing", code=404)
    for wrong in ({"tempo": 1}, {"rerender": "never"}, {"max_context_tokens": 0}, {"routed_experts": 1}):
        client.call("POST", "/sessions", wrong, code=400)
