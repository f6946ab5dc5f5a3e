from __future__ import annotations

import pytest
import torch

from miles_core.hf import folder
from miles_core.numerics import compiler
from miles_fsdp.attention import PACKED
from miles_fsdp.options import FsdpOptions

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_gpu_rank")]


def test_auto_takes_the_gpu_in_bf16_with_fp32_weights(tiny, checkpoints):
    backend = tiny.make_backend(checkpoints / "qwen3", device="auto")
    assert backend.device.type == "cuda"
    chosen = tiny.samples(8)
    wanted = tiny.reference(checkpoints / "qwen3", chosen)[1]
    for layout in ("thd", "bshd"):
        (outputs,) = backend.forward([tiny.micro_batch(chosen, layout, padding=3).to(backend.device)], tiny.REQUEST)
        assert torch.allclose(outputs.log_probs.cpu(), wanted, atol=0.15)
    assert {tensor.dtype for _, tensor in backend.export_weights()} == {torch.float32}


@pytest.mark.parametrize("options", [{}, {"cpu_offload": True}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("layout", ["thd", "bshd"])
def test_gradients_in_fp32_equal_those_on_the_cpu(tiny, checkpoints, options, layout):
    chosen = tiny.samples(8)
    wanted = {name: p.grad for name, p in tiny.reference(checkpoints / "qwen3", chosen)[0].named_parameters()}
    fp32 = FsdpOptions(optimizer="sgd", precision="fp32", **options)
    backend = tiny.make_backend(checkpoints / "qwen3", options=fp32, device="cuda", **tiny.PLAIN_SGD)
    batches = [tiny.micro_batch(part, layout).to(backend.device) for part in (chosen[:3], chosen[3:])]
    found = {name: tensor.cpu() for name, tensor in tiny.gradients(backend, batches).items()}
    assert tiny.furthest(found, wanted) < 1e-4


def test_packed_gradients_in_bf16_are_near_those_of_padded_rows(tiny, checkpoints):
    chosen = tiny.samples(8)
    found = {}
    for layout in ("thd", "bshd"):
        backend = tiny.make_backend(checkpoints / "qwen3", options=FsdpOptions(optimizer="sgd"), device="cuda", **tiny.PLAIN_SGD)
        found[layout] = tiny.gradients(backend, [tiny.micro_batch(chosen, layout).to(backend.device)])
    for name, gradient in found["thd"].items():
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), found["bshd"][name].flatten(), dim=0) > 0.99, name


def test_an_export_waits_in_host_memory_unless_told_otherwise(tiny, checkpoints, tmp_path, monkeypatch):
    save, most = folder.save_file, {}
    for to_host in (True, False):
        backend = tiny.make_backend(checkpoints / "qwen3", options=FsdpOptions(state_dict_cpu_offload=to_host), device="cuda")
        size = sum(param.nbytes for param in backend._sets["actor"].weights().values())
        before = torch.cuda.memory_allocated()

        def measured(*args, held=to_host, start=before):
            most[held] = torch.cuda.memory_allocated() - start
            save(*args)

        monkeypatch.setattr(folder, "save_file", measured)
        backend.export_hf(tmp_path / str(to_host))
        assert most[to_host] < size / 2 if to_host else most[to_host] >= size


def test_compiled_steps_are_near_those_that_are_not(tiny, checkpoints):
    compiler.compiled.cache_clear()
    chosen = tiny.samples(40)
    for precision, nearest in (("fp32", 0.99999), ("bf16", 0.99)):
        found = []
        for compiled in (False, True):
            options = FsdpOptions(optimizer="sgd", precision=precision, compile=compiled)
            backend = tiny.make_backend(checkpoints / "qwen3", options=options, device="cuda", **tiny.PLAIN_SGD)
            found.append(tiny.gradients(backend, [tiny.micro_batch(chosen).to(backend.device)]))
        for name, gradient in found[0].items():
            likeness = torch.nn.functional.cosine_similarity(gradient.flatten(), found[1][name].flatten(), dim=0)
            assert likeness > nearest, (precision, name)


def test_offloading_frees_the_gpu_and_changes_nothing(tiny, checkpoints):
    backend = tiny.make_backend(checkpoints / "qwen3", device="cuda", lr=1e-2, spec={"copies": ("ref",)})
    assert backend._sets["actor"].attention == PACKED
    batch = tiny.micro_batch(tiny.samples(4)).to(backend.device)
    backend.train_step([batch], tiny.REQUEST, tiny.loss)
    before = tiny.weights_of(backend)
    held = torch.cuda.memory_allocated()
    backend.offload()
    assert torch.cuda.memory_allocated() < held - sum(tensor.nbytes for tensor in before.values())
    backend.onload()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backend.export_weights())
    assert not backend.train_step([batch], tiny.REQUEST, tiny.loss).skipped
    for _ in range(2):
        assert backend.forward([batch], tiny.REQUEST, weights="ref")[0].log_probs.isfinite().all()


def test_saving_and_loading_on_the_gpu(tiny, checkpoints, tmp_path):
    backend = tiny.make_backend(checkpoints / "llama", device="cuda", lr=1e-2)
    batch = tiny.micro_batch(tiny.samples(4)).to(backend.device)
    backend.train_step([batch], tiny.REQUEST, tiny.loss)
    backend.save(tmp_path)
    saved = tiny.weights_of(backend)
    other = tiny.make_backend(checkpoints / "llama", device="cuda", lr=1e-2)
    other.load(tmp_path)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in other.export_weights())
    other.export_hf(tmp_path / "hf")
    assert (tmp_path / "hf" / "config.json").is_file()


def test_a_teacher_waits_in_host_memory(tiny, checkpoints):
    fp32 = FsdpOptions(precision="fp32")
    backend = tiny.make_backend(
        checkpoints / "qwen3", options=fp32, device="cuda", spec={"models": (("teacher", checkpoints / "llama"),)}
    )
    alone = tiny.make_backend(checkpoints / "qwen3", options=fp32, device="cuda")
    held = [param.untyped_storage().nbytes() for param in backend._sets["teacher"].parameters()]
    assert not any(held)
    chosen = tiny.samples(6)
    wanted = tiny.reference(checkpoints / "llama", chosen)[1]
    for layout in ("thd", "bshd"):
        batch = tiny.micro_batch(chosen, layout).to(backend.device)
        for _ in range(2):
            found = backend.forward([batch], tiny.REQUEST, weights="teacher")[0].log_probs
            assert torch.allclose(found.cpu(), wanted, atol=1e-4), layout
        actor = backend.forward([batch], tiny.REQUEST)[0].log_probs
        assert torch.equal(actor, alone.forward([batch], tiny.REQUEST)[0].log_probs)
    assert not any(param.untyped_storage().nbytes() for param in backend._sets["teacher"].parameters())
