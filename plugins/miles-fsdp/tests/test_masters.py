"""A model that one rank has for itself, against the same model with FSDP's hooks and copies around every layer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from miles_fsdp.masters import Masters
from miles_fsdp.options import FsdpOptions

pytestmark = pytest.mark.usefixtures("one_rank")

SPEC = {"copies": ("ref",)}


def trained(tiny, checkpoint, options: FsdpOptions, *, valued: bool):
    """Reports, weights and outputs of two steps of three micro-batches; the copy is overwritten in between."""
    spec = {"value_head": True} if valued else SPEC
    backend = tiny.make_backend(checkpoint, options=options, spec=spec, lr=1e-2, clip_grad=0.5)
    chosen = tiny.samples(6)
    batches = [tiny.micro_batch(chosen[i : i + 2]) for i in (0, 2, 4)]
    request, loss = (tiny.VALUES, tiny.value_loss) if valued else (tiny.REQUEST, tiny.loss)
    found = [backend.train_step(batches, request, loss)]
    if not valued:
        backend.copy_weights("actor", "ref")
    found.append(backend.train_step(batches, request, loss))
    outputs = backend.forward(batches, request)
    if not valued:
        outputs += backend.forward(batches, request, weights="ref")
    return backend, found, tiny.weights_of(backend), [o.values if valued else o.log_probs for o in outputs]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("model", "valued"), [("qwen3", False), ("llama", True), ("moe", False)])
def test_it_is_the_sharded_model_bit_for_bit(tiny, checkpoints, model: str, valued: bool, precision: str):
    options = FsdpOptions(precision=precision)
    alone, *found = trained(tiny, checkpoints / model, options, valued=valued)
    hooked, *wanted = trained(tiny, checkpoints / model, dataclasses.replace(options, cpu_offload=True), valued=valued)
    assert isinstance(hooked._sets["actor"], FSDPModule)
    assert not isinstance(alone._sets["actor"], FSDPModule)
    assert found[0] == wanted[0]
    assert all(torch.equal(tensor, wanted[1][name]) for name, tensor in found[1].items())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[2], wanted[2], strict=True))


def test_states_go_from_one_to_the_other(tiny, checkpoints, tmp_path):
    options = FsdpOptions(precision="bf16")
    batch = tiny.micro_batch(tiny.samples(4))
    for kind in (options, dataclasses.replace(options, cpu_offload=True)):
        other = dataclasses.replace(options, cpu_offload=not kind.cpu_offload)
        saved = tmp_path / str(kind.cpu_offload)
        saved.mkdir()
        first = tiny.make_backend(checkpoints / "qwen3", options=kind, lr=1e-2)
        first.train_step([batch], tiny.REQUEST, tiny.loss)
        first.save(saved)
        second = tiny.make_backend(checkpoints / "qwen3", options=other, lr=1e-2)
        second.load(saved)
        reports = [each.train_step([batch], tiny.REQUEST, tiny.loss) for each in (first, second)]
        assert reports[0] == reports[1]
        wanted = tiny.weights_of(first)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in second.export_weights())


def test_parameters_come_back_from_their_masters():
    master = torch.randn(5)
    param = torch.nn.Parameter(master.bfloat16())
    masters = Masters()
    masters.add("weight", master, param)
    assert masters.of("weight", param) is master
    masters.release()
    assert param.untyped_storage().nbytes() == 0
    master += 1
    masters.restore()
    assert torch.equal(param, master.bfloat16())
    (param.float() * 3).sum().backward()
    (param.float() * 2).sum().backward()
    assert param.grad is None
    assert torch.equal(master.grad, torch.full((5,), 5.0))
