"""Compiled layers and log-probs."""

from __future__ import annotations

import functools
import os

import pytest
import torch

from miles_core.errors import UsageError
from miles_core.numerics import adamw, compiler
from miles_core.numerics.adamw import CompiledAdamW
from miles_core.numerics.compiler import check_compiler
from miles_fsdp.options import FsdpOptions

pytestmark = pytest.mark.usefixtures("one_rank")


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_compiled_layers_have_the_same_gradients_and_serve_any_length(tiny, checkpoints, monkeypatch):
    # The front half of the compiler, which decides on programs; writing them out takes half a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    batches = [tiny.micro_batch(tiny.samples(count, seed=count)) for count in (4, 5)]
    found = []
    for compiled in (False, True):
        options = FsdpOptions(optimizer="sgd", gradient_checkpointing=True, compile=compiled)
        backend = tiny.make_backend(checkpoints / "qwen3", options=options, **tiny.PLAIN_SGD)
        found.append(tiny.gradients(backend, batches[:1]))
    assert tiny.furthest(found[1], found[0]) < 1e-5
    programs = graphs()
    assert programs > 0
    backend.train_step(batches[1:], tiny.REQUEST, tiny.loss)
    assert graphs() == programs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_steps_train_as_others_do(tiny, checkpoints, monkeypatch, precision: str):
    """AdamW's compiled update takes the gradients of one micro-batch as they are, and the sum of several; it clips and rounds."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    adamw._compiled.cache_clear()
    batches = [tiny.micro_batch(tiny.samples(count, seed=count)) for count in (4, 5)]
    found = []
    for compiled in (False, True):
        options = FsdpOptions(precision=precision, compile=compiled)
        backend = tiny.make_backend(checkpoints / "qwen3", options=options, lr=1e-3, clip_grad=0.05, weight_decay=0.1)
        reports = [backend.train_step(step, tiny.REQUEST, tiny.loss) for step in (batches, batches[:1], batches[1:])]
        actor = backend._sets["actor"]
        assert all(param.grad is None for param in actor.model.parameters())
        for name, param in actor.model.named_parameters():
            assert torch.equal(param, actor.weights()[name].to(param.dtype))
        found.append((reports, {name: weight.detach().clone() for name, weight in actor.weights().items()}))
    adamw._compiled.cache_clear()
    assert isinstance(backend._optimizer._optimizer, CompiledAdamW)
    assert [report.grad_norm for report in found[1][0]] == pytest.approx([report.grad_norm for report in found[0][0]], rel=1e-5)
    assert found[0][0][0].grad_norm > 0.05
    assert tiny.furthest(found[1][1], found[0][1]) < 1e-6


@pytest.mark.skipif(not os.environ.get("MILES_TEST_COMPILE"), reason="compiles for a minute: set MILES_TEST_COMPILE=1")
@pytest.mark.parametrize("model", ["qwen3", "moe"])
def test_programs_that_are_written_out_have_the_same_gradients(tiny, checkpoints, model: str):
    compiler.compiled.cache_clear()
    chosen, found = tiny.samples(6), []
    for compiled in (False, True):
        backend = tiny.make_backend(checkpoints / model, options=FsdpOptions(optimizer="sgd", compile=compiled), **tiny.PLAIN_SGD)
        found.append(tiny.gradients(backend, [tiny.micro_batch(chosen[:3]), tiny.micro_batch(chosen[3:])]))
    assert tiny.furthest(found[1], found[0]) < 1e-5


def test_a_machine_without_a_compiler_is_a_usage_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match=r"M582 .*neither g\+\+ nor clang\+\+"):
        check_compiler("cpu", "--fsdp-compile", "miles-fsdp")
    compiler = tmp_path / "clang++"
    compiler.touch(mode=0o755)
    check_compiler("cpu", "--fsdp-compile", "miles-fsdp")
