"""What two processes compute together, against what one computes alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from miles_core.hf import HfWeights
from miles_fsdp.options import FsdpOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_rank")]
WORLD = 2
SECONDS = 150


@pytest.fixture(scope="module")
def root(tiny, one_rank, checkpoints, tmp_path_factory) -> Path:
    """The folder that the two processes worked in."""
    folder = tmp_path_factory.mktemp("two") / "work"
    shutil.copytree(checkpoints, folder)
    alone = tiny.make_backend(folder / "qwen3", lr=1e-2, lr_warmup_iters=1, lr_decay_style="cosine")
    alone.train_step([tiny.micro_batch(tiny.samples(8))], tiny.REQUEST, tiny.loss)
    (folder / "saved-alone").mkdir()
    alone.save(folder / "saved-alone")
    torch.save(tiny.weights_of(alone), folder / "alone.pt")
    script = Path(__file__).with_name("two_ranks.py")
    logs = [folder / f"rank-{rank}.log" for rank in range(WORLD)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            command = [sys.executable, str(script), str(rank), str(WORLD), str(folder)]
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * WORLD, "\n".join(log.read_text()[-3000:] for log in logs)
    return folder


@pytest.fixture(scope="module")
def results(root) -> dict:
    """What rank 0 found."""
    return torch.load(root / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def rows(tiny):
    """All rows, those of rank 0 first."""
    every = tiny.samples(8)
    return every[0::2] + every[1::2]


def test_gradients_are_summed_over_ranks(tiny, root, rows, results):
    wanted = {
        model: {name: p.grad for name, p in tiny.reference(root / model, rows)[0].named_parameters()}
        for model in ("qwen3", "llama")
    }
    assert len(results["gradients"]) == 10
    for case, found in results["gradients"].items():
        assert tiny.furthest(found, wanted[case.split()[0]]) < 1e-5, case


def test_replayed_routes_are_those_of_every_rank(tiny, root, rows, results):
    options = FsdpOptions(optimizer="sgd")
    backend = tiny.make_backend(root / "moe", options=options, **tiny.PLAIN_SGD)
    free = tiny.gradients(backend, [tiny.micro_batch(rows)])
    backend = tiny.make_backend(root / "moe", options=options, **tiny.PLAIN_SGD)
    wanted = tiny.gradients(backend, [tiny.routed(tiny.micro_batch(rows))])
    assert tiny.furthest(free, wanted) > 0.1
    for found in results["routed"].values():
        assert tiny.furthest(found, wanted) < 2e-5


def test_ranks_know_their_place(results):
    assert results["place"] == (2, True, True, True)


def test_outputs_equal_those_of_one_rank(tiny, root, rows, results):
    _, log_probs, _ = tiny.reference(root / "qwen3", rows[:4])
    for name in ("log_probs", "ref"):
        assert torch.allclose(results[name], log_probs, atol=1e-5)


def test_a_teacher_is_shared_out_over_ranks(tiny, root, rows, results):
    assert torch.allclose(results["teacher"], tiny.reference(root / "llama", rows[:4])[1], atol=1e-5)


def test_steps_equal_those_of_one_rank(tiny, root, rows, results):
    backend = tiny.make_backend(root / "qwen3", lr=1e-2, lr_warmup_iters=1, lr_decay_style="cosine")
    for wanted in results["reports"]:
        report = backend.train_step([tiny.micro_batch(rows)], tiny.REQUEST, tiny.loss)
        assert report.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-5)
        assert report.learning_rates == wanted.learning_rates
    for name, tensor in backend.export_weights():
        assert torch.allclose(tensor, results["saved"][name], atol=1e-5)


def test_a_broken_gradient_on_one_rank_skips_the_step_on_all(results):
    assert results["skipped"]


def test_the_step_after_a_resume_is_the_same_bit_for_bit(results):
    assert results["next"] == results["next resumed"]
    assert all(torch.equal(tensor, results["stepped resumed"][name]) for name, tensor in results["stepped"].items())


def test_a_state_of_two_ranks_loads_on_one(tiny, root, rows, results):
    backend = tiny.make_backend(root / "qwen3", lr=1e-2, lr_warmup_iters=1, lr_decay_style="cosine")
    backend.load(root / "saved")
    for name, tensor in backend.export_weights():
        assert torch.equal(tensor, results["saved"][name])
    report = backend.train_step([tiny.micro_batch(rows)], tiny.REQUEST, tiny.loss)
    assert report.grad_norm == pytest.approx(results["next"].grad_norm, rel=1e-5)
    for name, tensor in backend.export_weights():
        assert torch.allclose(tensor, results["stepped"][name], atol=1e-5)


def test_copies_of_the_shards_go_on_from_shards_and_back(results):
    wanted, found = results["next"], results["next copied"]
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-6)
    for name, tensor in results["stepped copied"].items():
        assert torch.allclose(tensor, results["stepped"][name], atol=1e-6)
        assert torch.equal(tensor, results["copied and shared out"][name])


def test_a_state_of_one_rank_loads_on_two(root, results):
    wanted = torch.load(root / "alone.pt")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in results["of one rank"].items())


def test_two_ranks_export_one_directory(tiny, root, rows, results):
    stored = HfWeights(root / "exported")
    assert stored.tensors.keys() == results["stepped"].keys()
    assert all(torch.equal(stored.read(name), tensor) for name, tensor in results["stepped"].items())
    assert (root / "exported" / "tokenizer.json").is_file()


def test_copies_are_overwritten(results):
    assert results["copied"]


def test_fused_experts_are_sharded_and_come_back(root, results):
    stored = HfWeights(root / "moe")
    assert results["moe"].keys() == stored.tensors.keys()
    assert all(torch.equal(tensor, stored.read(name)) for name, tensor in results["moe"].items())


def test_a_critic_of_two_ranks_is_that_of_one(tiny, root, rows, results):
    backend = tiny.make_backend(root / "qwen3", options=FsdpOptions(optimizer="sgd"), spec={"value_head": True}, **tiny.PLAIN_SGD)
    (outputs,) = backend.forward([tiny.micro_batch(rows[:4])], tiny.VALUES)
    assert torch.allclose(results["values"], outputs.values, atol=1e-5)
    assert tiny.furthest(results["critic gradients"], tiny.gradients(backend, [tiny.micro_batch(rows)], critic=True)) < 1e-4
    exported = HfWeights(root / "critic")
    stepped = tiny.weights_of(backend)
    assert exported.tensors.keys() == stepped.keys()
    assert exported.tensors["score.weight"].shape == (1, 32)


def test_a_held_state_that_is_written_after_a_step_has_the_files_of_the_saved_one(root):
    saved, held = root / "saved", root / "saved-held"
    names = {path.relative_to(saved) for path in saved.rglob("*") if path.is_file()}
    assert names == {path.relative_to(held) for path in held.rglob("*") if path.is_file()}
    assert len([name for name in names if name.suffix == ".distcp"]) == WORLD
    for name in names - {Path("shards/.metadata")}:
        assert (saved / name).read_bytes() == (held / name).read_bytes(), name
    indices = [FileSystemReader(folder / "shards").read_metadata().storage_data for folder in (saved, held)]
    assert indices[0] == indices[1]
