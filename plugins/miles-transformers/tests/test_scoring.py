"""Log-probs of the prompt's own tokens, over HTTP, against a plain forward pass."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import urllib.error
import urllib.request

import pytest
import torch
from transformers import AutoModelForCausalLM

from miles_core.samples import FinishReason, GenerateRequest, SamplingParams
from miles_core.serving.client import EngineClient
from miles_transformers import scoring

KINDS = ["qwen3", "llama", "gpt2", "gemma2", "qwen3_moe"]


def post(url, **document):
    request = urllib.request.Request(f"{url}/generate", json.dumps(document).encode(), {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def plain(checkpoint):
    """Log-probs of all tokens but the first by the transformers model alone."""

    def score(ids, kind="qwen3", temperature=1.0):
        model = AutoModelForCausalLM.from_pretrained(checkpoint(kind), dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        every = torch.log_softmax(logits / temperature, -1)
        return every.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()

    return score


def score_only(requests, start=0):
    return [dataclasses.replace(r, logprob_start=start, params=dataclasses.replace(r.params, max_new_tokens=0)) for r in requests]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("logits", [scoring.LOGITS, 400])
def test_scores_equal_those_of_a_plain_pass(serve, plain, requests_of, kind, logits, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS", logits)
    served = serve(kind, prefill_tokens=64)
    requests = score_only(requests_of([1, 2, 9, 25, 17, 40, 3], temperature=0.7))
    results = served.generate(requests)
    for request in requests:
        result = results[request.rid]
        assert (result.output_ids, result.finish_reason) == ((), FinishReason.LENGTH)
        assert [token for _, token in result.input_log_probs] == list(request.input_ids)
        assert result.input_log_probs[0][0] is None
        found = [value for value, _ in result.input_log_probs[1:]]
        assert found == pytest.approx(plain(request.input_ids, kind, 0.7), abs=1e-5)


def test_the_document_has_sglang_s_shape(serve, plain):
    served = serve()
    ids = [5, 9, 3, 7]
    asked = {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False}
    meta = post(served.url, input_ids=ids, sampling_params=asked, return_logprob=True, logprob_start_len=0)["meta_info"]
    assert [entry[1:] for entry in meta["input_token_logprobs"]] == [[i, None] for i in ids]
    assert meta["input_token_logprobs"][0] == [None, 5, None]
    assert [entry[0] for entry in meta["input_token_logprobs"][1:]] == pytest.approx(plain(ids), abs=1e-5)
    assert meta["output_token_logprobs"] == []
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["finish_reason"]) == (4, 0, {"type": "length", "length": 0})

    later = post(served.url, input_ids=[ids, ids], sampling_params=asked, return_logprob=True, logprob_start_len=[2, -1])
    entries = later[0]["meta_info"]["input_token_logprobs"]
    assert [entry[:2] for entry in entries] == [[None, 3], [meta["input_token_logprobs"][3][0], 7]]
    assert "input_token_logprobs" not in later[1]["meta_info"]
    silent = post(served.url, input_ids=ids, sampling_params=asked, logprob_start_len=0)
    assert "input_token_logprobs" not in silent["meta_info"], "return_logprob was not set"


@pytest.mark.parametrize("start", [4, -2, "0", True])
def test_a_start_outside_of_the_prompt_is_refused(serve, start):
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(
            serve().url, input_ids=[1, 2, 3, 4], sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=start
        )
    assert refused.value.code == 400
    assert b"logprob_start_len must be -1 or a position in the prompt of 4 tokens" in refused.value.read()


def test_scoring_and_generating_go_together(serve, plain, requests_of, reference):
    served = serve(max_batch=4)
    generating = requests_of([3, 8, 12, 5, 7, 9], samples=2, name="g")
    both = [dataclasses.replace(r, logprob_start=0, rid=f"both-{r.rid}") for r in requests_of([6, 11], seed=2, max_new_tokens=5)]
    scoring_only = score_only(requests_of([20, 4, 30], seed=3, name="s"))
    alone = served.generate(generating)
    results = served.generate([*scoring_only[:1], *generating, *both, *scoring_only[1:]])
    for request in generating:
        assert results[request.rid].output_ids == alone[request.rid].output_ids
        assert results[request.rid].input_log_probs is None
    for request in both:
        result = results[request.rid]
        assert len(result.output_ids) == 5
        assert list(result.log_probs) == pytest.approx(reference(result, request), abs=1e-4)
    for request in [*both, *scoring_only]:
        found = [value for value, _ in results[request.rid].input_log_probs[1:]]
        assert found == pytest.approx(plain(request.input_ids), abs=1e-5)


def test_a_prompt_may_be_as_long_as_the_model_takes(serve, plain, requests_of):
    served = serve(kv_cache_tokens=64)
    (whole,) = score_only(requests_of([128]))
    found = served.generate([whole])[whole.rid].input_log_probs
    assert [value for value, _ in found[1:]] == pytest.approx(plain(whole.input_ids), abs=1e-5)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(served.url, input_ids=[3] * 129, sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=0)


def test_a_paused_engine_scores_nothing(serve):
    served = serve()
    request = GenerateRequest("waits", [4, 5, 6], SamplingParams(max_new_tokens=0), 0)
    served.engine.pause("retract")

    async def main():
        client = EngineClient([served.url], batch_stream=True, timeout=60.0)
        task = asyncio.create_task(anext(client.generate([request])))
        while not served.engine.scheduler.waiting:
            await asyncio.sleep(0.001)
        steps = served.engine.scheduler.steps
        assert not task.done()
        await asyncio.to_thread(served.engine.resume)
        result = await task
        await client.close()
        return steps, result

    steps, result = asyncio.run(main())
    assert served.engine.scheduler.steps > steps
    assert len(result.input_log_probs) == 3
    aborted = dataclasses.replace(request, rid="ends")
    served.engine.pause("retract")

    async def abort():
        client = EngineClient([served.url], batch_stream=True, timeout=60.0)
        task = asyncio.create_task(anext(client.generate([aborted])))
        while not served.engine.scheduler.waiting:
            await asyncio.sleep(0.001)
        await client.abort_all()
        result = await task
        await client.close()
        return result

    result = asyncio.run(abort())
    assert (result.finish_reason, result.input_log_probs) == (FinishReason.ABORT, None)


def test_scores_are_those_of_the_served_version(serve, requests_of):
    served = serve()
    served.engine.scheduler.decoder.version = 7
    (request,) = score_only(requests_of([5]))
    assert served.generate([request])[request.rid].weight_version == 7
