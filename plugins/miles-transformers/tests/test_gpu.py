"""On a GPU: graphs, memory and the numbers of the CPU tests."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from miles_core.config import ClusterOptions, RoutingOptions
from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_transformers.engine import TransformersEngine
from miles_transformers.options import TransformersOptions

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")]


@pytest.fixture
def serve_on_gpu(checkpoint, served_type):
    engines = []

    def start(kind="qwen3", **options):
        settings = TransformersOptions(**{"kv_cache_tokens": 4096, "dtype": "fp32", "max_batch": 10, **options})
        engine = TransformersEngine(Config.of(settings, ClusterOptions(device="cuda")))
        engines.append(engine)
        return served_type(engine, engine.start(EngineLaunch(rank=0, model=checkpoint(kind))))

    yield start
    for engine in engines:
        engine.stop()


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_graphs_change_no_token_and_no_log_prob(serve_on_gpu, requests_of, reference, kind):
    requests = requests_of([3, 17, 5, 9, 1, 30, 12, 7], samples=3, max_new_tokens=40, ignore_eos=True)
    served = serve_on_gpu(kind)
    served.generate(requests)
    with_graphs = served.generate(requests)
    assert served.engine.scheduler.decoder.runner._captured
    without = serve_on_gpu(kind, cuda_graphs=False).generate(requests)
    for request in requests:
        result = with_graphs[request.rid]
        assert result.output_ids == without[request.rid].output_ids
        assert result.log_probs == pytest.approx(reference(result, request, kind), abs=3e-5)


def test_a_model_that_cannot_be_captured_decodes_without_graphs(serve_on_gpu, requests_of, reference):
    served = serve_on_gpu("qwen3_moe")
    requests = requests_of([5, 9], max_new_tokens=30)
    served.generate(requests)
    for request in requests:
        result = served.generate([request])[request.rid]
        assert result.log_probs == pytest.approx(reference(result, request, "qwen3_moe"), abs=3e-5)


def test_released_memory_is_free_and_weights_must_come_again(serve_on_gpu, requests_of):
    served = serve_on_gpu(kv_cache_tokens=1280, max_batch=10)
    served.generate(requests_of([5] * 4, max_new_tokens=40))
    engine = served.engine
    engine.pause()
    before = torch.cuda.memory_allocated()
    parameters = sum(p.numel() * 4 for p in engine.model.module.parameters())
    cache = 1280 * sum(s.heads * (s.key_dim + s.value_dim) * 4 for s in engine.model.layers)
    engine.release_memory()
    assert before - torch.cuda.memory_allocated() >= parameters + cache
    engine.resume_memory()
    with pytest.raises(MilesError, match=r"M454 .*no version was committed since"):
        engine.resume()


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_prompts_are_scored_beside_decoding(serve_on_gpu, requests_of, reference, kind):
    served = serve_on_gpu(kind)
    made = served.generate(requests_of([3, 17, 9, 30], max_new_tokens=12, ignore_eos=True, temperature=0.7))
    asked = requests_of([3, 17, 9, 30], temperature=0.7, max_new_tokens=0, name="s")
    scoring = [
        dataclasses.replace(request, input_ids=[*request.input_ids, *made[f"r{i}-0"].output_ids], logprob_start=0)
        for i, request in enumerate(asked)
    ]
    decoding = requests_of([5, 8], samples=2, seed=4, max_new_tokens=20)
    results = served.generate([*scoring, *decoding])
    for i, request in enumerate(asked):
        response = made[f"r{i}-0"]
        found = [value for value, _ in results[request.rid].input_log_probs[-12:]]
        assert found == pytest.approx(response.log_probs, abs=3e-5)
    for request in decoding:
        assert results[request.rid].log_probs == pytest.approx(reference(results[request.rid], request, kind), abs=3e-5)


def test_graphs_note_the_same_routes(checkpoint, served_type, requests_of):
    """Steps that are replayed as graphs run no Python, and must note routes all the same."""
    asked = [
        dataclasses.replace(request, return_routed_experts=True)
        for request in requests_of([3, 17, 5, 9], samples=2, max_new_tokens=40, ignore_eos=True)
    ]
    found = []
    for graphs in (True, False):
        settings = TransformersOptions(kv_cache_tokens=4096, dtype="fp32", max_batch=10, cuda_graphs=graphs)
        routing = RoutingOptions(use_rollout_routing_replay=True)
        engine = TransformersEngine(Config.of(settings, routing, ClusterOptions(device="cuda")))
        try:
            served = served_type(engine, engine.start(EngineLaunch(rank=0, model=checkpoint("half_dense"))))
            served.generate(asked)
            found.append({rid: result.routed_experts for rid, result in served.generate(asked).items()})
        finally:
            engine.stop()
    assert found[0] == found[1]
