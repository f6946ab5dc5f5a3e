"""The wire format."""

from __future__ import annotations

import base64
import dataclasses
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, SamplingParams
from miles_core.serving import wire

PARAMS = SamplingParams(
    max_new_tokens=9,
    temperature=0.7,
    top_p=0.9,
    top_k=5,
    min_new_tokens=2,
    stop=("a", "bc"),
    stop_token_ids=(4, 5),
    ignore_eos=True,
    skip_special_tokens=True,
    sampling_seed=-(2**62),
)
REQUESTS = [GenerateRequest("a", [1, 2, 3], PARAMS), GenerateRequest("b", [4], SamplingParams(max_new_tokens=1))]


def test_a_batched_call_survives_the_wire():
    call = wire.decode_call(json.loads(wire.encode_call(REQUESTS, batched=True, stream=True)))
    assert call == wire.GenerateCall(tuple(REQUESTS), batched=True, stream=True, return_logprob=True)


def test_routes_survive_the_wire():
    asked = [dataclasses.replace(request, return_routed_experts=True) for request in REQUESTS]
    document = json.loads(wire.encode_call(asked, batched=True, stream=False))
    assert document["return_routed_experts"] is True
    assert wire.decode_call(document).requests == tuple(asked)
    assert "return_routed_experts" not in json.loads(wire.encode_call(REQUESTS, batched=True, stream=False))
    routes = struct.pack("<6i", 7, 0, -1, 255, 3, 127)
    result = GenerateResult("a", (5,), (-0.5,), FinishReason.STOP, 1, "x", 2, routed_experts=routes)
    answer = json.loads(wire.dumps(wire.encode_result(result)))
    assert base64.b64decode(answer["meta_info"]["routed_experts"]) == routes
    assert wire.decode_result(answer, "a") == result
    answer["meta_info"]["routed_experts"] = "no base64"
    with pytest.raises(ValueError, match="base64"):
        wire.decode_result(answer, "a")


def test_prompt_log_probs_survive_the_wire():
    asked = [GenerateRequest("a", [1, 2, 3], PARAMS, 0), GenerateRequest("b", [4, 5], PARAMS)]
    document = json.loads(wire.encode_call(asked, batched=True, stream=False))
    assert document["logprob_start_len"] == [0, -1]
    assert wire.decode_call(document).requests == tuple(asked)
    assert wire.decode_call({**document, "return_logprob": False}).requests[0].logprob_start is None
    pairs = ((None, 1), (struct.unpack("f", struct.pack("f", -0.3))[0], 2))
    result = GenerateResult("a", (), (), FinishReason.LENGTH, 1, "", 2, pairs)
    answer = json.loads(wire.dumps(wire.encode_result(result)))
    assert answer["meta_info"]["input_token_logprobs"] == [[None, 1, None], [pairs[1][0], 2, None]]
    assert wire.decode_result(answer, "a") == result
    assert "input_token_logprobs" not in wire.encode_result(result, return_logprob=False)["meta_info"]
    with pytest.raises(ValueError, match="3 entries for 2 prompts"):
        wire.decode_call({**document, "logprob_start_len": [0, 0, 0]})


def test_a_single_call_has_sglangs_shape():
    document = json.loads(wire.encode_call(REQUESTS[:1], batched=False, stream=False))
    assert document == {
        "input_ids": [1, 2, 3],
        "rid": "a",
        "return_logprob": True,
        "stream": False,
        "sampling_params": {
            "max_new_tokens": 9,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "min_new_tokens": 2,
            "ignore_eos": True,
            "skip_special_tokens": True,
            "spaces_between_special_tokens": False,
            "no_stop_trim": True,
            "stop": ["a", "bc"],
            "stop_token_ids": [4, 5],
            "sampling_seed": -(2**62),
        },
    }
    with pytest.raises(ValueError, match="holds one request"):
        wire.encode_call(REQUESTS, batched=False, stream=False)


def test_what_sglangs_clients_leave_out_has_its_defaults():
    call = wire.decode_call({"input_ids": [[5], [6, 7]], "sampling_params": {"stop": "x", "top_k": 0}})
    assert [r.input_ids for r in call.requests] == [[5], [6, 7]]
    assert {r.params for r in call.requests} == {SamplingParams(max_new_tokens=128, stop=("x",))}
    assert len({r.rid for r in call.requests}) == 2
    assert (call.batched, call.stream, call.return_logprob) == (True, False, False)
    assert [r.rid for r in wire.decode_call({"input_ids": [[5], [6]], "rid": "q"}).requests] == ["q_0", "q_1"]


@given(st.lists(st.floats(max_value=0, width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_log_probs_survive_the_wire_exactly(values):
    result = GenerateResult("r", tuple(range(len(values))), tuple(values), FinishReason.STOP, 3, "t", 5)
    back = wire.decode_result(json.loads(wire.dumps(wire.encode_result(result))), "r")
    assert back == result
    assert [struct.pack("f", v) for v in back.log_probs] == [struct.pack("f", v) for v in values]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must be a JSON object"),
        ({"text": "hello"}, "input_ids must be a list"),
        ({"input_ids": "abc"}, "input_ids must be a list"),
        ({"input_ids": [[1], []]}, "input_ids[1] must be a list of at least one"),
        ({"input_ids": [[1], 2]}, "input_ids[1] must be a list of at least one"),
        ({"input_ids": [1, -2]}, "input_ids[0] holds something"),
        ({"input_ids": [True]}, "input_ids[0] holds something"),
        ({"input_ids": [1.5]}, "input_ids[0] holds something"),
        ({"input_ids": [[1], [2]], "sampling_params": [{}]}, "sampling_params has 1 entries for 2 prompts"),
        ({"input_ids": [[1], [2]], "rid": ["a", "a"]}, "the same rid is given twice"),
        ({"input_ids": [[1]], "rid": [5]}, "rid must be a string"),
        ({"input_ids": [1], "rid": ["a"]}, "rid must be a string"),
        ({"input_ids": [1], "stream": "yes"}, "stream must be true or false"),
        ({"input_ids": [1], "sampling_params": "hot"}, "sampling_params must be an object"),
        ({"input_ids": [1], "sampling_params": {"temperature": -1}}, "temperature is -1, out of range"),
        ({"input_ids": [1], "sampling_params": {"temperature": float("nan")}}, "temperature is nan, out of range"),
        ({"input_ids": [1], "sampling_params": {"temperature": "1"}}, "temperature must be a number"),
        ({"input_ids": [1], "sampling_params": {"top_p": 0}}, "top_p must be above 0"),
        ({"input_ids": [1], "sampling_params": {"max_new_tokens": 1.5}}, "max_new_tokens must be a whole number"),
        ({"input_ids": [1], "sampling_params": {"max_new_tokens": True}}, "max_new_tokens must be a whole number"),
        ({"input_ids": [1], "sampling_params": {"stop": [""]}}, "stop must hold texts"),
        ({"input_ids": [1], "sampling_params": {"stop": 5}}, "stop must hold texts"),
        ({"input_ids": [1], "sampling_params": {"stop_token_ids": ["a"]}}, "stop_token_ids must be a list"),
        ({"input_ids": [1], "sampling_params": {"ignore_eos": 1}}, "sampling_params.ignore_eos must be true or false"),
    ],
)
def test_a_bad_call_says_where(document, message):
    with pytest.raises(ValueError) as caught:
        wire.decode_call(document)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def answer(**meta):
    """An answer in SGLang's words."""
    base = {"id": "x", "finish_reason": {"type": "stop", "matched": 7}, "prompt_tokens": 2, "completion_tokens": 1}
    return {"text": "t", "output_ids": [7], "meta_info": {**base, "output_token_logprobs": [[-0.5, 7, None]], **meta}}


def test_answers_of_other_servers():
    assert wire.decode_result(answer(weight_version="default"), "r").weight_version == 0
    assert wire.decode_result(answer(finish_reason=None), "r") is None
    aborted = wire.decode_result(
        {"text": "", "meta_info": {"finish_reason": {"type": "abort", "message": "Abort in waiting queue"}}}, "r"
    )
    assert (aborted.finish_reason, aborted.output_ids) == (FinishReason.ABORT, ())
    for bad, message in (
        ({"error": {"message": "out of memory"}}, "out of memory"),
        ({"text": "t"}, "no meta_info"),
        (answer(output_token_logprobs=[[-0.5, 8, None]]), "name different tokens"),
        (answer(output_token_logprobs=None), "tokens without log-probs"),
        (answer(finish_reason={"type": "tired"}), "tired"),
    ):
        with pytest.raises(ValueError, match=message):
            wire.decode_result(bad, "r")
