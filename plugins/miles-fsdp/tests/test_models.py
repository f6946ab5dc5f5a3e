"""Further frozen models beside the actor: a teacher of another architecture and size."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from miles_core.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture(scope="module")
def large(tiny, tmp_path_factory):
    """A Llama of other widths and depth than the tiny checkpoints, with the same vocabulary."""
    torch.manual_seed(5)
    sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "intermediate_size": 64, "initializer_range": 0.2}
    folder = tmp_path_factory.mktemp("large")
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", ["thd", "bshd"])
def test_another_size_and_architecture_scores_as_transformers_does(tiny, checkpoints, large, layout):
    spec = {"models": (("teacher", large), ("second", checkpoints / "gemma2")), "copies": ("ref",)}
    backend = tiny.make_backend(checkpoints / "qwen3", spec=spec, qkv_format=layout, lr=1e-2)
    chosen = tiny.samples(5)
    batch = tiny.micro_batch(chosen, layout)
    before = backend.forward([batch], tiny.REQUEST, weights="teacher")[0].log_probs
    for name, source in (("teacher", large), ("second", checkpoints / "gemma2"), ("ref", checkpoints / "qwen3")):
        found = backend.forward([batch], tiny.REQUEST, weights=name)[0].log_probs
        assert torch.allclose(found, tiny.reference(source, chosen)[1], atol=1e-5), name
        assert not found.requires_grad
    backend.train_step([batch], tiny.REQUEST, tiny.loss)
    assert torch.equal(backend.forward([batch], tiny.REQUEST, weights="teacher")[0].log_probs, before), "it is frozen"


def test_it_is_parked_between_its_passes(tiny, checkpoints, large, monkeypatch):
    monkeypatch.setattr("miles_fsdp.backend.FsdpBackend._offloads", True)
    backend = tiny.make_backend(checkpoints / "qwen3", spec={"models": (("teacher", large),)})
    held = [param.untyped_storage() for param in backend._sets["teacher"].parameters()]
    batch = tiny.micro_batch(tiny.samples(2))
    first = backend.forward([batch], tiny.REQUEST, weights="teacher")[0].log_probs
    assert all(storage.nbytes() == 0 for storage in held)
    assert torch.equal(backend.forward([batch], tiny.REQUEST, weights="teacher")[0].log_probs, first)


def test_a_model_that_cannot_be_packed_is_refused_for_itself(tiny, checkpoints):
    with pytest.raises(UsageError, match=r"M345 .*--qkv-format bshd"):
        tiny.make_backend(checkpoints / "qwen3", spec={"models": (("teacher", checkpoints / "bloom"),)})
