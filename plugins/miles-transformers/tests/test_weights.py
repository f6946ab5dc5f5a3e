"""The weight transaction and the memory states."""

from __future__ import annotations

import threading

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from miles_core.errors import MilesError
from miles_core.protocols.engine import TensorEntry, WeightBucket
from miles_core.samples import FinishReason
from miles_core.weights import WeightPublisher, digest, open_transport
from miles_transformers.weights import WeightStore


class LocalHandle:
    """An engine of this process, as the publisher sees it."""

    name = "engine 0"

    def __init__(self, engine) -> None:
        self.engine = engine

    def call(self, method, *args):
        try:
            return getattr(self.engine, method)(*args), None
        except Exception as error:
            return None, error

    def wait(self, futures, timeout):
        for _, error in futures:
            if error is not None:
                raise error
        return [value for value, _ in futures]


@pytest.fixture
def publish(tmp_path):
    def run(engine, version, tensors, bucket_bytes=20_000):
        publisher = WeightPublisher(
            open_transport("shared_file", tmp_path, f"v{version}"), bucket_bytes=bucket_bytes, check_equal=True, timeout=30.0
        )
        try:
            return publisher.publish(version, iter(tensors.items()), [LocalHandle(engine)])
        finally:
            publisher.close()

    return run


def bucket(version: int, tensors: dict[str, torch.Tensor], tmp_path) -> WeightBucket:
    """One bucket over a file."""
    transport = open_transport("shared_file", tmp_path, "one")
    from miles_core.weights import pack

    transport.begin(1)
    packed = next(pack(tensors.items(), 1 << 20, lambda index, nbytes: transport.buffer(0, nbytes)))
    handle = transport.stage(0, packed, 1)[0]
    return WeightBucket(version, 0, "shared_file", handle, packed.entries, packed.nbytes)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", "qwen3_moe"])
def test_published_weights_are_what_is_served(serve, requests_of, reference, checkpoint, publish, kind):
    served = serve(kind)
    requests = requests_of([5, 12], samples=2, max_new_tokens=10)
    before = served.generate(requests)
    assert {r.weight_version for r in before.values()} == {0}
    weights = load_file(checkpoint(kind, seed=5) / "model.safetensors")
    report = publish(served.engine, 3, weights)
    assert report.buckets > 1
    after = served.generate(requests)
    for request in requests:
        result = after[request.rid]
        assert result.weight_version == 3
        assert result.log_probs == pytest.approx(reference(result, request, kind, seed=5), abs=1e-5)
    assert after["r0-0"].log_probs != before["r0-0"].log_probs
    digests = served.engine.weight_digests()
    assert {name: digests[name] for name in weights} == {name: digest(tensor) for name, tensor in weights.items()}


def test_tied_weights_may_come_under_either_name_or_both(serve, checkpoint, publish):
    weights = load_file(checkpoint("qwen3", seed=5) / "model.safetensors")
    assert "lm_head.weight" not in weights
    served = serve("qwen3")
    publish(served.engine, 1, {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    other = dict(weights)
    other["lm_head.weight"] = other.pop("model.embed_tokens.weight")
    publish(served.engine, 2, other)
    assert served.engine.weight_digests()["model.embed_tokens.weight"] == digest(weights["model.embed_tokens.weight"])


def test_tensors_that_the_models_class_leaves_out_are_taken_and_left_out(serve, checkpoint, publish, monkeypatch):
    weights = load_file(checkpoint("qwen3", seed=5) / "model.safetensors")
    ahead = {"model.mtp_layers.0.input_proj.weight": torch.ones(2, 3)}
    monkeypatch.setattr(Qwen3ForCausalLM, "_keys_to_ignore_on_load_unexpected", (r"^model\.mtp_layers\.",), raising=False)
    served = serve("qwen3")
    publish(served.engine, 1, {**weights, **ahead})
    digests = served.engine.weight_digests()
    assert digests["model.norm.weight"] == digest(weights["model.norm.weight"])
    assert {name for name, found in digests.items() if not found} == ahead.keys()
    publish(served.engine, 2, weights)
    assert "" not in served.engine.weight_digests().values()


def test_weights_in_another_precision_are_compared_as_served(serve, checkpoint, publish):
    weights = load_file(checkpoint("qwen3", seed=5) / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    publish(serve("qwen3").engine, 1, halves)
    narrow = serve("qwen3", dtype="bf16").engine
    publish(narrow, 1, weights)
    assert set(narrow.weight_dtypes().values()) == {"bfloat16"}
    assert narrow.weight_digests()["model.norm.weight"] == digest(halves["model.norm.weight"])
    digests = narrow.weight_digests
    narrow.weight_digests = lambda: {**digests(), "model.norm.weight": digest(halves["model.norm.weight"] + 1)}
    with pytest.raises(MilesError, match=r"M473 .*1 of .*model.norm.weight \(differs\)"):
        publish(narrow, 2, weights)


def test_a_version_that_is_not_whole_is_never_served(serve, checkpoint, publish, requests_of):
    served = serve("qwen3")
    weights = load_file(checkpoint("qwen3", seed=5) / "model.safetensors")
    partial = {name: tensor for name, tensor in weights.items() if "q_norm" not in name}
    with pytest.raises(MilesError, match=r"M459 .*2 are missing \(model.layers.0.self_attn.q_norm.weight, "):
        publish(served.engine, 1, partial)
    with pytest.raises(MilesError, match=r"M454 .*transaction of version 1 is open"):
        served.engine.resume()
    with pytest.raises(MilesError, match="M454"):
        served.engine.weight_digests()
    with pytest.raises(MilesError, match=r"M459 .*1 are unknown to the model \(model.extra\)"):
        publish(served.engine, 2, {**weights, "model.extra": torch.zeros(3)})
    assert served.engine.info()["weight_version"] == "0"
    found = {}
    thread = threading.Thread(target=lambda: found.update(served.generate(requests_of([5]))))
    thread.start()
    while not served.engine.scheduler.waiting:
        thread.join(0.001)
    publish(served.engine, 4, weights)
    thread.join(30)
    # The publish pauses in mode abort, which ends who waits too.
    assert found["r0-0"].finish_reason is FinishReason.ABORT
    assert found["r0-0"].output_ids == ()
    assert served.generate(requests_of([5]))["r0-0"].weight_version == 4


def test_misfits_and_wrong_order_are_refused(serve, tmp_path):
    engine = serve("qwen3").engine
    norm = "model.norm.weight"
    with pytest.raises(MilesError, match=r"M454 .*pause the engine first"):
        engine.begin_weights(1)
    engine.pause()
    with pytest.raises(MilesError, match=r"M457 .*no transaction is open"):
        engine.receive_weights(bucket(1, {norm: torch.zeros(32)}, tmp_path))
    with pytest.raises(MilesError, match=r"M457 .*no transaction is open"):
        engine.commit_weights(1)
    engine.begin_weights(1)
    with pytest.raises(MilesError, match=r"M457 .*version 1 is open"):
        engine.receive_weights(bucket(2, {norm: torch.zeros(32)}, tmp_path))
    with pytest.raises(MilesError, match=r"M457 .*version 1 is open"):
        engine.commit_weights(2)
    with pytest.raises(MilesError, match=r"M458 .*model.norm.weight does not fit: its shape is \[31\], the engine's \[32\]"):
        engine.receive_weights(bucket(1, {norm: torch.zeros(31)}, tmp_path))
    with pytest.raises(MilesError, match=r"M458 .*its dtype is torch.int32, the engine's torch.float32"):
        engine.receive_weights(bucket(1, {norm: torch.zeros(32, dtype=torch.int32)}, tmp_path))
    assert isinstance(bucket(1, {norm: torch.zeros(32)}, tmp_path).entries[0], TensorEntry)


def test_released_memory_comes_back_and_nothing_is_decoded_meanwhile(serve, requests_of):
    served = serve("qwen3")
    requests = requests_of([5, 9], max_new_tokens=10)
    before = served.generate(requests)
    engine = served.engine
    for _ in range(2):
        engine.release_memory()
    assert engine.scheduler.decoder.cache is None
    engine.pause()
    with pytest.raises(MilesError, match=r"M454 .*KV cache is released"):
        engine.resume()
    engine.resume_memory(["weights"])
    assert engine.scheduler.decoder.cache is None
    for _ in range(2):
        engine.resume_memory(["kv_cache"])
    engine.resume()
    assert served.generate(requests) == before
    with pytest.raises(MilesError, match=r"M454 .*no memory called disk"):
        engine.release_memory(["disk"])


def test_a_request_during_a_release_waits(serve, requests_of):
    served = serve("qwen3")
    served.engine.release_memory(["kv_cache"])
    found = {}
    thread = threading.Thread(target=lambda: found.update(served.generate(requests_of([5]))))
    thread.start()
    while not served.engine.scheduler.waiting:
        thread.join(0.001)
    served.engine.resume_memory(["kv_cache"])
    served.engine.resume()
    thread.join(30)
    assert found["r0-0"].output_ids


def test_restored_weights_can_be_written_from_another_thread(checkpoint):
    """Release and restore happen in the decoding thread's inference mode, a transaction in another thread without it."""
    module = AutoModelForCausalLM.from_pretrained(checkpoint("qwen3"), dtype=torch.float32)
    # The store frees memory of accelerators only; what it does is the same for any tensor.
    store = WeightStore(module, torch.device("cuda"))
    shapes = {name: p.shape for name, p in module.named_parameters()}
    with torch.inference_mode():
        store.release()
        assert sum(p.numel() for p in module.parameters()) == 0
        with pytest.raises(MilesError, match=r"M457 .*memory is released"):
            store.begin(1)
        store.restore()
    assert {name: p.shape for name, p in module.named_parameters()} == shapes
    assert not store.defined
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.ones(parameter.shape))
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert store.digests()["lm_head.weight"] == digest(torch.ones(64, 32))
