"""Right numbers: log-probs, greedy decoding, slots that are refilled, and reruns."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from miles_core.samples import FinishReason

EOS = {1, 7, 20}
LENGTHS = [3, 17, 5, 9, 1, 30, 12, 7]


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_log_probs_equal_a_plain_forward_pass(serve, requests_of, reference, kind, temperature):
    served = serve(kind, max_batch=6)
    requests = requests_of(LENGTHS, samples=3, max_new_tokens=20, temperature=temperature)
    results = served.generate(requests)
    assert len(results) == len(requests)
    for request in requests:
        result = results[request.rid]
        assert result.log_probs == pytest.approx(reference(result, request, kind), abs=1e-5)
        assert result.prompt_tokens == len(request.input_ids)
        assert len(result.text) > 0
        ended = result.output_ids[-1] in EOS
        assert result.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
        assert not EOS & set(result.output_ids[:-1])
        assert ended or len(result.output_ids) == 20
    if temperature > 1.0:
        assert {r.finish_reason for r in results.values()} == {FinishReason.STOP, FinishReason.LENGTH}


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", "gemma2"])
def test_greedy_equals_transformers_generate(serve, requests_of, checkpoint, kind):
    served = serve(kind, max_batch=3)
    requests = requests_of(LENGTHS, max_new_tokens=24, temperature=0.0)
    results = served.generate(requests)
    model = AutoModelForCausalLM.from_pretrained(checkpoint(kind), dtype=torch.float32)
    for request in requests:
        ids = torch.tensor([request.input_ids])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert list(results[request.rid].output_ids) == whole[0, ids.shape[1] :].tolist()


def test_a_rerun_gives_the_same_bits(serve, requests_of):
    requests = requests_of(LENGTHS, samples=4, max_new_tokens=20)
    first = serve(max_batch=5).generate(requests)
    second = serve(max_batch=5).generate(requests)
    assert first == second
    renamed = [dataclasses.replace(r, params=dataclasses.replace(r.params, sampling_seed=None)) for r in requests]
    unseeded = [serve(max_batch=5).generate(renamed) for _ in range(2)]
    assert unseeded[0] == unseeded[1] != first


def test_a_seed_gives_the_same_response_in_any_company(serve, requests_of):
    requests = requests_of(LENGTHS, samples=2, max_new_tokens=20, top_p=0.9)
    company = requests_of([4, 21, 8], samples=5, seed=9, name="other", max_new_tokens=30, temperature=1.3)
    together = serve(max_batch=7).generate([*company, *requests])
    apart = serve(max_batch=64).generate(list(reversed(requests)))
    for request in requests:
        assert together[request.rid].output_ids == apart[request.rid].output_ids


def test_siblings_differ_and_share_one_prefill(serve, requests_of, monkeypatch):
    served = serve(max_batch=16)
    passes = []
    forward = served.engine.scheduler.decoder.model.module.forward
    monkeypatch.setattr(
        served.engine.scheduler.decoder.model.module,
        "forward",
        lambda **k: (passes.append(tuple(k["input_ids"].shape)), forward(**k))[1],
    )
    results = served.generate(requests_of([10], samples=8, max_new_tokens=12))
    assert len({r.output_ids for r in results.values()}) == 8
    assert passes[0] == (1, 10)
    assert all(shape[1] == 1 for shape in passes[1:])


def test_a_full_cache_evicts_the_youngest_and_loses_nothing(serve, requests_of, reference):
    served = serve(max_batch=16, kv_cache_tokens=320)
    evictions = []
    decoder = served.engine.scheduler.decoder
    evict = decoder.evict
    decoder.evict = lambda rows: (evictions.extend(rows), evict(rows))[1]
    requests = requests_of([5] * 12, max_new_tokens=110, ignore_eos=True)
    results = served.generate(requests)
    assert evictions
    for request in requests:
        result = results[request.rid]
        assert len(result.output_ids) == 110
        assert result.log_probs == pytest.approx(reference(result, request), abs=1e-5)


def test_the_context_ends_a_response(serve, requests_of):
    served = serve()
    request = requests_of([100], max_new_tokens=500, ignore_eos=True)[0]
    result = served.generate([request])[request.rid]
    assert (len(result.output_ids), result.finish_reason) == (28, FinishReason.LENGTH)


def test_no_tokens_asked_for(serve, requests_of):
    result = serve().generate(requests_of([4], max_new_tokens=0))["r0-0"]
    assert (result.output_ids, result.finish_reason) == ((), FinishReason.LENGTH)
