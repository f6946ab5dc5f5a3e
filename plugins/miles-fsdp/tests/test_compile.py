"""Compiled layers and log-probs."""

from __future__ import annotations

import functools
import os

import pytest
import torch

from miles_core.errors import UsageError
from miles_core.numerics import compiler
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
