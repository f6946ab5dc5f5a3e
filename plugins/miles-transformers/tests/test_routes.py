"""The experts that tokens go to, told with the answers."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from miles_core.errors import RunError, UsageError
from miles_core.samples import FinishReason

LENGTHS = [3, 17, 5, 9, 1, 30]
LAYERS, TOP_K = 3, 3


def asking(requests):
    return [dataclasses.replace(request, return_routed_experts=True) for request in requests]


@pytest.fixture(scope="module")
def routes_of(checkpoint):
    """The routes of a whole sequence by one plain forward pass, ``[tokens - 1, layers, top_k]``; -1 in dense layers."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint("half_dense"), dtype=torch.float32).eval()
    found = {}
    for layer in (0, 2):
        gate = model.model.layers[layer].mlp.gate
        gate.register_forward_hook(lambda _m, _a, out, layer=layer: found.__setitem__(layer, out[2]))

    def compute(request, result):
        ids = torch.tensor([[*request.input_ids, *result.output_ids]])
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
        whole = np.full((ids.shape[1], LAYERS, TOP_K), -1)
        for layer, experts in found.items():
            whole[:, layer] = experts.numpy()
        return whole[:-1]

    return compute


def told(request, result):
    tokens = len(request.input_ids) + len(result.output_ids)
    return np.frombuffer(result.routed_experts, "<i4").reshape(tokens - 1, LAYERS, TOP_K)


@pytest.mark.parametrize("batch_stream", [True, False])
def test_routes_are_those_of_a_plain_forward_pass(serve, requests_of, routes_of, batch_stream):
    """With padding, siblings that share a prefill, and slots that are refilled."""
    served = serve("half_dense", routes=True, max_batch=6)
    requests = asking(requests_of(LENGTHS, samples=3, max_new_tokens=20))
    results = served.generate(requests, batch_stream=batch_stream)
    for request in requests:
        assert np.array_equal(told(request, results[request.rid]), routes_of(request, results[request.rid])), request.rid


def test_asking_changes_no_token(serve, requests_of):
    requests = requests_of(LENGTHS, samples=2, max_new_tokens=12)
    plain = serve("half_dense").generate(requests)
    served = serve("half_dense", routes=True)
    assert served.generate(requests) == plain
    asked = served.generate(asking(requests))
    assert {rid: dataclasses.replace(result, routed_experts=None) for rid, result in asked.items()} == plain


def test_evicted_rows_tell_all_their_routes(serve, requests_of, routes_of):
    served = serve("half_dense", routes=True, max_batch=16, kv_cache_tokens=320)
    evictions = []
    decoder = served.engine.scheduler.decoder
    evict = decoder.evict
    decoder.evict = lambda rows: (evictions.extend(rows), evict(rows))[1]
    requests = asking(requests_of([5] * 12, max_new_tokens=110, ignore_eos=True))
    results = served.generate(requests)
    assert evictions
    for request in requests:
        assert np.array_equal(told(request, results[request.rid]), routes_of(request, results[request.rid]))


def test_a_response_that_goes_on_brings_the_routes_of_the_whole(serve, requests_of, routes_of):
    served = serve("half_dense", routes=True)
    (request,) = asking(requests_of([7], max_new_tokens=6, ignore_eos=True))
    first = served.generate([request])[request.rid]
    again = dataclasses.replace(request, rid="again", input_ids=[*request.input_ids, *first.output_ids])
    second = served.generate([again])["again"]
    whole = told(again, second)
    assert len(whole) == 7 + 6 + 6 - 1
    assert np.array_equal(whole, routes_of(again, second))
    assert np.array_equal(whole[: 7 + 6 - 1], told(request, first))


def test_a_request_that_is_aborted_tells_what_it_has(serve, requests_of, routes_of):
    served = serve("half_dense", routes=True)
    requests = asking(requests_of([4, 6], max_new_tokens=100, ignore_eos=True))
    scheduler = served.engine.scheduler
    step = scheduler.decoder.step
    reached = threading.Event()

    def counted():
        ended = step()
        if scheduler.steps == 12:
            reached.set()
        return ended

    scheduler.decoder.step = counted
    aborter = threading.Thread(target=lambda: (reached.wait(30), scheduler.abort(None)))
    aborter.start()
    results = served.generate(requests)
    aborter.join()
    for request in requests:
        result = results[request.rid]
        assert result.finish_reason is FinishReason.ABORT
        assert 0 < len(result.output_ids) < 100
        assert np.array_equal(told(request, result), routes_of(request, result))


def test_routes_are_refused_where_they_are_not_noted(serve, requests_of):
    with pytest.raises(RunError, match=r"M443.*--use-rollout-routing-replay"):
        serve("half_dense").generate(asking(requests_of([3])))


def test_a_dense_model_cannot_tell_routes(serve):
    with pytest.raises(UsageError, match=r"M436.*no routers"):
        serve("qwen3", routes=True)
