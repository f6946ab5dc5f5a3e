"""The value head of a critic."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from miles_core.errors import UsageError
from miles_core.hf import HfWeights
from miles_fsdp.options import FsdpOptions

pytestmark = pytest.mark.usefixtures("one_rank")

CRITIC = {"spec": {"value_head": True}}


def plain_critic(checkpoint, head):
    """The trunk of the HF model with a head of the given weight and bias."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    linear = torch.nn.Linear(head[0].shape[1], 1)
    with torch.no_grad():
        linear.weight.copy_(head[0])
        linear.bias.copy_(head[1])
    return model, linear


def plain_values(model, linear, chosen) -> list[torch.Tensor]:
    """Values of each sample alone, at the positions in front of its response tokens."""
    found = []
    for tokens, response, _ in chosen:
        hidden = model.base_model(torch.tensor([tokens]), use_cache=False).last_hidden_state[0, -response - 1 : -1]
        found.append(linear(hidden)[:, 0])
    return found


def head_of(backend) -> tuple[torch.Tensor, torch.Tensor]:
    weights = dict(backend.export_weights())
    return weights["score.weight"].clone(), weights["score.bias"].clone()


@pytest.mark.parametrize("model", ["qwen3", "llama", "moe", "gemma2"])
@pytest.mark.parametrize("layout", ["thd", "bshd"])
def test_values_and_gradients_are_those_of_each_sample_alone(tiny, checkpoints, model, layout):
    chosen = tiny.samples(6)
    backend = tiny.make_backend(
        checkpoints / model, options=FsdpOptions(optimizer="sgd"), **{**tiny.PLAIN_SGD, "qkv_format": layout}, **CRITIC
    )
    head = head_of(backend)
    plain, linear = plain_critic(checkpoints / model, head)
    wanted = plain_values(plain, linear, chosen)
    batches = [tiny.micro_batch(chosen[:4], layout), tiny.micro_batch(chosen[4:], layout)]
    outputs = backend.forward(batches, tiny.VALUES)
    found = torch.cat([o.values for o in outputs])
    assert found.dtype == torch.float32
    assert outputs[0].log_probs is None
    assert torch.allclose(found, torch.cat(wanted), atol=1e-5)

    for values, (_, _, weight) in zip(wanted, chosen, strict=True):
        (torch.tensor(weight) * (values - 1.0).square()).sum().backward()
    gradients = {n: p.grad for n, p in plain.base_model.named_parameters()}
    moved = tiny.gradients(backend, batches, critic=True)
    assert (
        tiny.furthest({"w": moved["score.weight"], "b": moved["score.bias"]}, {"w": linear.weight.grad, "b": linear.bias.grad})
        < 1e-4
    )
    prefix = plain.base_model_prefix
    same = {n: g for n, g in gradients.items() if g is not None and f"{prefix}.{n}" in moved}
    assert len(same) > 5
    assert tiny.furthest({n: moved[f"{prefix}.{n}"] for n in same}, same) < 1e-4


def test_the_head_starts_from_the_seed_and_the_trunk_from_the_checkpoint(tiny, checkpoints):
    backend = tiny.make_backend(checkpoints / "qwen3", **CRITIC)
    weight, bias = head_of(backend)
    assert weight.shape == (1, 32)
    assert bias.tolist() == [0.0]
    assert 0.01 < float(weight.std()) < 0.03
    assert torch.equal(weight, head_of(tiny.make_backend(checkpoints / "llama", **CRITIC))[0])
    assert not torch.equal(weight, head_of(tiny.make_backend(checkpoints / "qwen3", seed=7, **CRITIC))[0])
    stored = HfWeights(checkpoints / "qwen3")
    exported = tiny.weights_of(backend)
    assert "lm_head.weight" not in exported
    assert torch.equal(exported["model.embed_tokens.weight"], stored.read("model.embed_tokens.weight"))


def test_a_tied_embedding_is_not_trained_as_a_head(tiny, checkpoints):
    """Rows of tokens that are not read get no gradient; with the tie in place the head would give every row one."""
    chosen = tiny.samples(4)
    backend = tiny.make_backend(checkpoints / "qwen3", options=FsdpOptions(optimizer="sgd"), **tiny.PLAIN_SGD, **CRITIC)
    before = tiny.weights_of(backend)["model.embed_tokens.weight"]
    backend.train_step([tiny.micro_batch(chosen)], tiny.VALUES, tiny.value_loss)
    moved = (tiny.weights_of(backend)["model.embed_tokens.weight"] - before).abs().sum(1)
    read = {token for tokens, _, _ in chosen for token in tokens}
    unread = [token for token in range(len(before)) if token not in read]
    assert unread
    assert float(moved[unread].max()) == 0.0
    assert float(moved[sorted(read)].max()) > 0.0


@pytest.mark.parametrize("model", ["qwen3", "llama", "moe"])
def test_an_export_has_the_head_and_comes_back(tiny, checkpoints, tmp_path, model):
    chosen = tiny.samples(4)
    backend = tiny.make_backend(checkpoints / model, lr=1e-2, **CRITIC)
    backend.train_step([tiny.micro_batch(chosen)], tiny.VALUES, tiny.value_loss)
    (wanted,) = backend.forward([tiny.micro_batch(chosen)], tiny.VALUES)
    backend.export_hf(tmp_path / "critic")
    again = tiny.make_backend(tmp_path / "critic", **CRITIC)
    (found,) = again.forward([tiny.micro_batch(chosen)], tiny.VALUES)
    assert torch.equal(found.values, wanted.values)
    config = json.loads((tmp_path / "critic" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"][0].endswith("ForTokenClassification")
    if model == "moe":
        return
    classifier = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic", dtype=torch.float32).eval()
    tokens, response, _ = chosen[0]
    logits = classifier(torch.tensor([tokens]), use_cache=False).logits[0, -response - 1 : -1, 0]
    assert torch.allclose(logits, wanted.values[:response], atol=1e-5)


def test_a_state_comes_back_bit_for_bit(tiny, checkpoints, tmp_path):
    batch = tiny.micro_batch(tiny.samples(4))
    backend = tiny.make_backend(checkpoints / "qwen3", lr=1e-2, **CRITIC)
    backend.train_step([batch], tiny.VALUES, tiny.value_loss)
    (tmp_path / "state").mkdir()
    backend.save(tmp_path / "state")
    wanted = backend.train_step([batch], tiny.VALUES, tiny.value_loss)
    again = tiny.make_backend(checkpoints / "qwen3", lr=1e-2, **CRITIC)
    again.load(tmp_path / "state")
    assert again.train_step([batch], tiny.VALUES, tiny.value_loss) == wanted
    other = tiny.weights_of(again)
    assert all(torch.equal(tensor, other[name]) for name, tensor in backend.export_weights())
    with pytest.raises(UsageError, match="M344"):
        tiny.make_backend(checkpoints / "qwen3", lr=1e-2).load(tmp_path / "state")
