from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from miles_core.errors import RunError, UsageError
from miles_core.hf import folder, register_families
from miles_core.protocols.backend import OutputRequest
from miles_fsdp.options import FsdpOptions

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.mark.parametrize("model", ["qwen3", "llama", "moe"])
@pytest.mark.parametrize("attention", ["flash_attention_2", "sdpa", "eager"])
@pytest.mark.parametrize("layout", ["thd", "bshd"])
def test_outputs_equal_those_of_each_sample_alone(tiny, checkpoints, model, attention, layout):
    backend = tiny.make_backend(checkpoints / model, options=FsdpOptions(attn_implementation=attention))
    chosen = tiny.samples(6)
    _, log_probs, entropy = tiny.reference(checkpoints / model, chosen)
    batches = [tiny.micro_batch(chosen[:4], layout, padding=5), tiny.micro_batch(chosen[4:], layout)]
    for request in (tiny.REQUEST, dataclasses.replace(tiny.REQUEST, chunk_size=3)):
        outputs = backend.forward(batches, request)
        assert torch.allclose(torch.cat([o.log_probs for o in outputs]), log_probs, atol=1e-5)
        assert torch.allclose(torch.cat([o.entropy for o in outputs]), entropy, atol=1e-5)
        assert not outputs[0].log_probs.requires_grad


@pytest.mark.parametrize(("model", "layouts"), [("gemma2", ("thd", "bshd")), ("bloom", ("bshd",))])
def test_odd_models_are_computed_as_transformers_does(tiny, checkpoints, model, layouts):
    chosen = tiny.samples(6)
    _, log_probs, _ = tiny.reference(checkpoints / model, chosen)
    for layout in layouts:
        backend = tiny.make_backend(checkpoints / model, qkv_format=layout)
        assert backend._sets["actor"].plain_head == (model != "gemma2")
        for request in (tiny.REQUEST, dataclasses.replace(tiny.REQUEST, chunk_size=3)):
            (outputs,) = backend.forward([tiny.micro_batch(chosen, layout)], request)
            assert torch.allclose(outputs.log_probs, log_probs, atol=1e-5)


SPLITS = {"one": [8], "two": [3, 5], "each": [1] * 8}
VARIANTS = {
    "plain": FsdpOptions(optimizer="sgd"),
    "recomputed": FsdpOptions(optimizer="sgd", gradient_checkpointing=True),
    "offloaded": FsdpOptions(optimizer="sgd", cpu_offload=True),
    "sdpa": FsdpOptions(optimizer="sgd", attn_implementation="sdpa"),
    "eager": FsdpOptions(optimizer="sgd", attn_implementation="eager"),
}


@pytest.mark.parametrize("model", ["qwen3", "llama"])
def test_gradients_do_not_depend_on_how_the_batch_is_split(tiny, checkpoints, model):
    chosen = tiny.samples(8)
    wanted = {name: p.grad for name, p in tiny.reference(checkpoints / model, chosen)[0].named_parameters()}
    cases = [("plain", split, layout) for split in SPLITS for layout in ("thd", "bshd")]
    cases += [(variant, "two", layout) for variant in list(VARIANTS)[1:] for layout in ("thd", "bshd")]
    for variant, split, layout in cases:
        backend = tiny.make_backend(checkpoints / model, options=VARIANTS[variant], **tiny.PLAIN_SGD)
        rows = iter(chosen)
        batches = [tiny.micro_batch([next(rows) for _ in range(size)], layout) for size in SPLITS[split]]
        assert tiny.furthest(tiny.gradients(backend, batches), wanted) < 1e-5, (variant, split, layout)


def test_chunked_log_probs_have_the_same_gradients(tiny, checkpoints):
    chosen = tiny.samples(8)
    found = []
    for size in (-1, 3):
        backend = tiny.make_backend(checkpoints / "qwen3", options=VARIANTS["plain"], **tiny.PLAIN_SGD)
        before = tiny.weights_of(backend)
        backend.train_step([tiny.micro_batch(chosen)], dataclasses.replace(tiny.REQUEST, chunk_size=size), tiny.loss)
        found.append({name: (before[name] - after) / tiny.RATE for name, after in backend.export_weights()})
    assert tiny.furthest(found[1], found[0]) < 1e-5


def test_a_mixture_of_experts_has_the_gradients_of_its_samples(tiny, checkpoints):
    chosen = tiny.samples(8)
    model, _, _ = tiny.reference(checkpoints / "moe", chosen)
    stepped = {name: p.detach() - tiny.RATE * p.grad for name, p in model.named_parameters()}
    backend = tiny.make_backend(checkpoints / "moe", options=VARIANTS["plain"], **tiny.PLAIN_SGD)
    assert backend._sets["actor"].plain_head
    backend.train_step([tiny.micro_batch(chosen)], tiny.REQUEST, tiny.loss)
    found = backend._sets["actor"].weights()
    assert tiny.furthest(found, stepped) < 1e-5


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_steps_equal_those_of_a_plain_loop(tiny, checkpoints, optimizer):
    training = {"lr": 1e-2, "lr_decay_style": "linear", "lr_warmup_iters": 1, "weight_decay": 0.1, "clip_grad": 0.5}
    backend = tiny.make_backend(
        checkpoints / "qwen3", options=FsdpOptions(optimizer=optimizer), spec={"train_steps": 5}, **training
    )
    model = AutoModelForCausalLM.from_pretrained(checkpoints / "qwen3", dtype=torch.float32).eval()
    if optimizer == "adam":
        plain = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    else:
        plain = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(4):
        chosen = tiny.samples(4, seed=step)
        report = backend.train_step([tiny.micro_batch(chosen[:2]), tiny.micro_batch(chosen[2:])], tiny.REQUEST, tiny.loss)
        for tokens, response, weight in chosen:
            logits = model(torch.tensor([tokens])).logits[0, -response - 1 : -1] / tiny.REQUEST.temperature
            every = torch.log_softmax(logits, -1)
            picked = every.gather(1, torch.tensor(tokens[-response:])[:, None])[:, 0]
            tiny.token_loss(picked, -(every.exp() * every).sum(-1), torch.tensor(weight)).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        plain.param_groups[0]["lr"] = rate = [0.0, 1e-2, 0.75e-2, 0.5e-2][step]
        plain.step()
        plain.zero_grad()
        assert norm > 0.5
        assert report.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        assert report.learning_rates == pytest.approx((rate,))
    wanted = dict(model.named_parameters())
    for name, tensor in backend.export_weights():
        assert torch.allclose(tensor, wanted[name], atol=1e-5), name


def test_a_step_with_a_broken_gradient_is_skipped(tiny, checkpoints):
    backend = tiny.make_backend(checkpoints / "qwen3", lr=1e-2, lr_warmup_iters=2)
    batch = tiny.micro_batch(tiny.samples(3))
    before = tiny.weights_of(backend)
    report = backend.train_step([batch], tiny.REQUEST, lambda b, o: tiny.loss(b, o) * math.nan)
    assert report.skipped
    assert math.isnan(report.grad_norm)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backend.export_weights())
    rates = [backend.train_step([batch], tiny.REQUEST, tiny.loss).learning_rates[0] for _ in range(3)]
    assert rates == [0.0, 0.005, 0.01]


def test_a_loss_without_gradient_is_an_error(tiny, checkpoints):
    backend = tiny.make_backend(checkpoints / "qwen3")
    with pytest.raises(RunError, match=r"M430"):
        backend.train_step([tiny.micro_batch(tiny.samples(2))], tiny.REQUEST, lambda b, o: torch.zeros(()))


def test_forward_sees_the_weights_of_the_last_step(tiny, checkpoints, tmp_path):
    backend = tiny.make_backend(checkpoints / "qwen3", lr=1e-2)
    batch = tiny.micro_batch(tiny.samples(4))
    start = backend.forward([batch], tiny.REQUEST)[0].log_probs
    backend.save(tmp_path)
    backend.train_step([batch], tiny.REQUEST, tiny.loss)
    stepped = backend.forward([batch], tiny.REQUEST)[0].log_probs
    assert not torch.equal(start, stepped)
    backend.load(tmp_path)
    assert torch.equal(backend.forward([batch], tiny.REQUEST)[0].log_probs, start)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_step_after_a_resume_is_the_same_bit_for_bit(tiny, checkpoints, tmp_path, optimizer):
    def make():
        return tiny.make_backend(
            checkpoints / "llama", options=FsdpOptions(optimizer=optimizer), lr=1e-2, lr_decay_style="cosine", lr_warmup_iters=1
        )

    batches = [tiny.micro_batch(tiny.samples(4, seed=s)) for s in range(3)]
    first = make()
    for batch in batches[:2]:
        first.train_step([batch], tiny.REQUEST, tiny.loss)
    first.save(tmp_path)
    drawn = torch.rand(3)
    wanted_report = first.train_step(batches[2:], tiny.REQUEST, tiny.loss)
    wanted = tiny.weights_of(first)
    second = make()
    second.load(tmp_path)
    assert torch.equal(torch.rand(3), drawn)
    assert second.train_step(batches[2:], tiny.REQUEST, tiny.loss) == wanted_report
    found = tiny.weights_of(second)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_held_state_is_the_saved_one_whatever_is_trained_before_it_is_written(tiny, checkpoints, tmp_path):
    backend = tiny.make_backend(checkpoints / "qwen3", spec={"copies": ("ref",)}, lr=1e-2)
    batch = tiny.micro_batch(tiny.samples(4))
    backend.train_step([batch], tiny.REQUEST, tiny.loss)
    backend.copy_weights("actor", "ref")
    saved, held = tmp_path / "saved", tmp_path / "held"
    saved.mkdir()
    held.mkdir()
    backend.save(saved)
    state = backend.hold(held)
    before = tiny.weights_of(backend)
    assert not [path for path in held.rglob("*") if path.is_file()]
    backend.train_step([batch], tiny.REQUEST, tiny.loss)
    backend.copy_weights("actor", "ref")
    with ThreadPoolExecutor(1) as beside:
        state.complete([beside.submit(state.write).result()])
    names = {path.relative_to(saved) for path in saved.rglob("*") if path.is_file()}
    assert names == {path.relative_to(held) for path in held.rglob("*") if path.is_file()}
    for name in names - {Path("shards/.metadata")}:
        assert (saved / name).read_bytes() == (held / name).read_bytes(), name
    # The index has the folder's name and a random number in it.
    indices = [FileSystemReader(folder / "shards").read_metadata() for folder in (saved, held)]
    assert indices[0].storage_data == indices[1].storage_data
    assert indices[0].state_dict_metadata == indices[1].state_dict_metadata
    backend.load(held)
    after = tiny.weights_of(backend)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_state_of_another_model_or_optimizer_is_refused(tiny, checkpoints, tmp_path):
    tiny.make_backend(checkpoints / "qwen3").save(tmp_path)
    with pytest.raises(UsageError, match=r"M344 .*lm_head.weight of shape .*lacks it"):
        tiny.make_backend(checkpoints / "llama").load(tmp_path)
    with pytest.raises(UsageError, match=r"M344 .*--optimizer adam, not sgd"):
        tiny.make_backend(checkpoints / "qwen3", options=FsdpOptions(optimizer="sgd")).load(tmp_path)
    with pytest.raises(UsageError, match=r"M344 .*fsdp.json cannot be read"):
        tiny.make_backend(checkpoints / "qwen3").load(tmp_path / "nowhere")


@pytest.mark.parametrize("model", ["qwen3", "llama", "half", "moe"])
def test_exported_weights_are_the_checkpoint_s(tiny, checkpoints, model):
    from miles_core.hf import HfWeights

    backend = tiny.make_backend(checkpoints / model)
    stored = HfWeights(checkpoints / model)
    found = tiny.weights_of(backend)
    assert found.keys() == stored.tensors.keys()
    for name, tensor in found.items():
        assert tensor.dtype == stored.tensors[name].dtype
        assert torch.equal(tensor, stored.read(name)), name


@pytest.mark.parametrize("to_host", [True, False])
@pytest.mark.parametrize("model", ["qwen3", "llama", "moe"])
def test_an_exported_directory_loads_in_transformers(tiny, checkpoints, tmp_path, model, to_host, monkeypatch):
    monkeypatch.setattr("miles_core.hf.folder.SHARD_BYTES", 20_000 if model == "llama" else 2**30)
    backend = tiny.make_backend(checkpoints / model, options=FsdpOptions(state_dict_cpu_offload=to_host), lr=1e-2)
    chosen = tiny.samples(4)
    backend.train_step([tiny.micro_batch(chosen)], tiny.REQUEST, tiny.loss)
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale").write_text("")
    backend.export_hf(target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (target / "stale").exists()
    assert (target / "model.safetensors.index.json").exists() == (model == "llama")
    wanted = backend.forward([tiny.micro_batch(chosen)], tiny.REQUEST)[0].log_probs
    assert torch.allclose(tiny.reference(target, chosen)[1], wanted, atol=1e-5)
    if model == "qwen3":
        assert AutoTokenizer.from_pretrained(target).encode("abc") == [65, 66, 67]


def test_tensors_that_are_no_parameters_are_carried(tiny, tmp_path):
    """The layers of multi-token prediction, which transformers' class leaves out."""
    register_families()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("mimo", vocab_size=tiny.VOCABULARY, num_hidden_layers=2, num_nextn_predict_layers=1, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mimo")
    tensors = load_file(tmp_path / "mimo" / "model.safetensors")
    ahead = {"model.mtp_layers.0.input_proj.weight": torch.randn(32, 64)}
    save_file({**tensors, **ahead}, tmp_path / "mimo" / "model.safetensors", {"format": "pt"})
    backend = tiny.make_backend(tmp_path / "mimo", lr=1e-2, lr_warmup_iters=0)
    backend.train_step([tiny.micro_batch(tiny.samples(4))], tiny.REQUEST, tiny.loss)
    backend.export_hf(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == {*tensors, *ahead}
    assert torch.equal(written[next(iter(ahead))], next(iter(ahead.values())))
    assert not torch.equal(written["model.norm.weight"], tensors["model.norm.weight"])
    assert {name for name, _ in backend.export_weights()} == tensors.keys()


@pytest.mark.parametrize("to_host", [True, False])
def test_an_export_waits_in_host_memory_or_in_copies(tiny, checkpoints, tmp_path, to_host, monkeypatch):
    backend = tiny.make_backend(checkpoints / "qwen3", options=FsdpOptions(state_dict_cpu_offload=to_host))
    held = {name: tensor.data_ptr() for name, tensor in backend._sets["actor"].weights().items()}
    written = {}
    save = folder.save_file
    monkeypatch.setattr(folder, "save_file", lambda tensors, *rest: (written.update(tensors), save(tensors, *rest)))
    backend.export_hf(tmp_path / "out")
    assert written.keys() == held.keys()
    # On a CPU the weights are in host memory, so that there is nothing to move; a copy on the device would be a second one.
    assert {written[name].data_ptr() == held[name] for name in held} == {to_host}


def test_a_reference_copy_stays_until_it_is_overwritten(tiny, checkpoints, tmp_path):
    backend = tiny.make_backend(checkpoints / "qwen3", lr=1e-2, spec={"copies": ("ref",)})
    batch = tiny.micro_batch(tiny.samples(4))
    start = backend.forward([batch], tiny.REQUEST)[0].log_probs
    backend.train_step([batch], tiny.REQUEST, tiny.loss)
    assert torch.equal(backend.forward([batch], tiny.REQUEST, weights="ref")[0].log_probs, start)
    backend.copy_weights("actor", "ref")
    stepped = backend.forward([batch], tiny.REQUEST)[0].log_probs
    backend.save(tmp_path)
    resumed = tiny.make_backend(checkpoints / "qwen3", lr=1e-2, spec={"copies": ("ref",)})
    resumed.load(tmp_path)
    for one in (backend, resumed):
        assert torch.equal(one.forward([batch], tiny.REQUEST, weights="ref")[0].log_probs, stepped)
    with pytest.raises(RunError, match=r"M432 .*no weights named old: set up: actor, ref"):
        backend.forward([batch], tiny.REQUEST, weights="old")


def test_a_copy_can_come_from_another_directory(tiny, checkpoints):
    spec = {"copies": ("ref",), "copy_sources": (("ref", checkpoints / "llama"),)}
    backend = tiny.make_backend(checkpoints / "qwen3", spec=spec)
    chosen = tiny.samples(3)
    found = backend.forward([tiny.micro_batch(chosen)], tiny.REQUEST, weights="ref")[0].log_probs
    assert torch.allclose(found, tiny.reference(checkpoints / "llama", chosen)[1], atol=1e-5)


@pytest.mark.parametrize("really", [False, True])
def test_offloading_and_back_changes_nothing(tiny, checkpoints, monkeypatch, really):
    if really:
        monkeypatch.setattr("miles_fsdp.backend.FsdpBackend._offloads", True)
    backend = tiny.make_backend(checkpoints / "qwen3", lr=1e-2, spec={"copies": ("ref",)})
    batch = tiny.micro_batch(tiny.samples(4))
    backend.offload()
    backend.onload()
    backend.train_step([batch], tiny.REQUEST, tiny.loss)
    before = tiny.weights_of(backend)
    for _ in range(2):
        backend.offload()
    for use in (backend.export_weights, lambda: backend.forward([batch], tiny.REQUEST)):
        with pytest.raises(RunError, match=r"M431"):
            use()
    for _ in range(2):
        backend.onload()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backend.export_weights())
    assert not backend.train_step([batch], tiny.REQUEST, tiny.loss).skipped
    assert backend.forward([batch], tiny.REQUEST, weights="ref")[0].log_probs.isfinite().all()


def test_computing_in_bf16_keeps_fp32_weights(tiny, checkpoints):
    backend = tiny.make_backend(checkpoints / "qwen3", options=FsdpOptions(precision="bf16"), lr=1e-5)
    chosen = tiny.samples(4)
    batch = tiny.micro_batch(chosen)
    found = backend.forward([batch], tiny.REQUEST)[0].log_probs
    assert found.dtype == torch.float32
    assert torch.allclose(found, tiny.reference(checkpoints / "qwen3", chosen)[1], atol=0.15)
    before = tiny.weights_of(backend)
    backend.train_step([batch], tiny.REQUEST, tiny.loss)
    moved = [(tensor - before[name]).abs().max().item() for name, tensor in backend.export_weights()]
    assert max(moved) == pytest.approx(1e-5, rel=0.05)


def test_only_what_was_requested_comes_back(tiny, checkpoints):
    backend = tiny.make_backend(checkpoints / "qwen3")
    (outputs,) = backend.forward([tiny.micro_batch(tiny.samples(2))], OutputRequest())
    assert outputs.entropy is None
    assert outputs.values is None
    assert outputs.log_probs.shape == (sum(r for _, r, _ in tiny.samples(2)),)
