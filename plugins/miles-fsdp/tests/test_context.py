"""What ranks that share the tokens of their rows compute, against the plain model run on one sample at a time."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from miles_core.errors import RunError
from miles_fsdp.attention import Packing
from miles_fsdp.blocks import Scores, block_backward, block_forward
from miles_fsdp.context import Context, Shard
from miles_fsdp.options import FsdpOptions
from miles_fsdp.shared_attention import shared_attention

SECONDS = 240
FOLDER = Path(__file__).parent


def script(tiny):
    """The module of the processes."""
    sys.modules.setdefault("helpers", tiny)
    spec = importlib.util.spec_from_file_location("miles_fsdp_context_ranks", FOLDER / "context_ranks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ranks(tiny):
    return script(tiny)


@pytest.fixture(scope="module")
def root(ranks, checkpoints, tmp_path_factory) -> Path:
    """The folder that the processes worked in."""
    folder = tmp_path_factory.mktemp("context") / "work"
    shutil.copytree(checkpoints, folder)
    ranks.write_models(folder)
    command = [sys.executable, str(FOLDER / "context_ranks.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def results(root) -> dict:
    return torch.load(root / "context.pt", weights_only=False)


@pytest.fixture(scope="module")
def plain(tiny, ranks, root):
    """Gradients, log-probs and entropy of the plain models, by name."""
    found = {}
    for name in ("qwen3", "llama", "mistral", "three", "three-windowed", "six"):
        model, log_probs, entropy = tiny.reference(root / name, ranks.ROWS)
        found[name] = {n: p.grad for n, p in model.named_parameters()}, log_probs, entropy
    return found


@pytest.mark.slow
def test_gradients_count_every_token_once(tiny, ranks, plain, results):
    assert len(results["gradients"]) == len(ranks.CASES)
    for case, found in results["gradients"].items():
        if not case.startswith("moe"):
            assert tiny.furthest(found, plain[case.split()[0]][0]) < 1e-5, case
    assert tiny.furthest(results["logits"], plain["llama"][0]) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("one_rank")
def test_experts_and_critics_are_those_of_one_rank(tiny, ranks, root, results):
    options = FsdpOptions(optimizer="sgd")
    moe = tiny.make_backend(root / "moe", options=options, **tiny.PLAIN_SGD)
    wanted = tiny.gradients(moe, [tiny.micro_batch(ranks.ROWS)])
    assert tiny.furthest(results["gradients"]["moe thd 2 2"], wanted) < 2e-5
    critic = tiny.make_backend(root / "qwen3", options=options, spec={"value_head": True}, **tiny.PLAIN_SGD)
    (outputs,) = critic.forward([tiny.micro_batch(ranks.ROWS)], tiny.VALUES)
    assert torch.allclose(results["values"], outputs.values, atol=1e-5)
    wanted = tiny.gradients(critic, [tiny.micro_batch(ranks.ROWS)], critic=True)
    assert tiny.furthest(results["critic gradients"], wanted) < 2e-5


@pytest.mark.slow
def test_every_rank_returns_whole_responses(ranks, plain, results):
    sizes = [response for _, response, _ in ranks.ROWS]
    for weights, model in (("actor", "qwen3"), ("ref", "qwen3"), ("teacher", "llama")):
        for rank, found in enumerate(results[weights]):
            for mine, every in zip(found, plain[model][1:], strict=True):
                wanted = torch.cat(every.split(sizes)[rank // 2 :: 2])
                assert torch.allclose(mine, wanted, rtol=1e-5, atol=1e-5), (weights, rank)


@pytest.mark.slow
def test_ranks_know_their_place(results):
    told, groups = zip(*results["places"], strict=True)
    assert list(told) == [(rank, rank // 2, 2, 2, rank == 0, True, True) for rank in range(4)]
    assert list(groups) == [[0, 2], [1, 3], [0, 2], [1, 3]]


@pytest.mark.slow
@pytest.mark.usefixtures("one_rank")
def test_a_state_goes_on_under_any_split(tiny, ranks, root, results):
    report, weights = results["stepped"]
    (same_report, same), *others = results["next"]
    assert same_report == report
    assert all(torch.equal(tensor, weights[name]) for name, tensor in same.items())
    alone = tiny.make_backend(root / "qwen3", **ranks.ADAM)
    alone.load(root / "saved-context")
    assert all(torch.equal(tensor, results["saved"][name]) for name, tensor in alone.export_weights())
    others.append((alone.train_step([tiny.micro_batch(ranks.ROWS)], tiny.REQUEST, tiny.loss), tiny.weights_of(alone)))
    for other_report, other in others:
        assert other_report.grad_norm == pytest.approx(report.grad_norm, rel=1e-5)
        assert all(torch.allclose(tensor, weights[name], atol=1e-5) for name, tensor in other.items())


@pytest.mark.slow
@pytest.mark.usefixtures("one_rank")
def test_what_looks_at_whole_responses_does_not_depend_on_the_split(ranks, root, results):
    metrics, weights = ranks.trained(root, 1)
    assert len(metrics) == 2
    assert abs(metrics[1]["train/ppo_kl"]) > 1e-4
    for size, (found, stepped) in results["trained"].items():
        for step, wanted in enumerate(metrics):
            assert found[step] == pytest.approx(wanted, rel=1e-4, abs=1e-6), (size, step)
        assert all(torch.allclose(tensor, weights[name], atol=1e-5) for name, tensor in stepped.items()), size


@pytest.mark.slow
def test_what_cannot_be_shared_is_refused(results):
    refused = results["refusals"]
    assert refused["ranks"].startswith("M338")
    assert "4 ranks are no multiple" in refused["ranks"]
    assert refused["soft-capped"].startswith("M338")
    assert "gemma2 has more than" in refused["soft-capped"]
    assert refused["own masks"].startswith("M345")
    assert "attention interface" in refused["own masks"]


@pytest.mark.parametrize("layout", ["thd", "bshd"])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_shards_hold_every_token_once(tiny, layout: str, size: int):
    batch = tiny.micro_batch(tiny.samples(3), layout)
    shards = [Shard.of(batch, Context(None, rank, size)) for rank in range(size)]
    whole = shards[0].whole
    assert whole.tokens.shape[1] % size == 0
    assert whole.tokens.shape[1] - batch.tokens.shape[1] < size
    assert torch.equal(torch.stack([s.tokens for s in shards], 2).flatten(1), whole.tokens)
    assert torch.equal(torch.stack([s.position_ids for s in shards], 2).flatten(1), whole.position_ids)
    if layout == "thd":
        lengths = whole.cu_seqlens.diff().tolist()
        assert torch.equal(whole.position_ids[0], torch.cat([torch.arange(n) for n in lengths]))
        assert whole.max_seqlen == max(lengths)
    assert torch.equal(torch.cat([s.mine for s in shards]).sort()[0], torch.arange(len(batch.targets)))
    wanted = batch.tokens.flatten()[batch.logit_index]
    collected = torch.full((size, shards[0].most), -1)
    for rank, shard in enumerate(shards):
        found = shard.tokens.flatten()[shard.logit_index]
        assert torch.equal(found, wanted[shard.mine])
        collected[rank, : len(found)] = found
    assert all(torch.equal(collected.flatten()[s.order], wanted) for s in shards)


def test_a_batch_without_responses_has_shards(tiny):
    batch = tiny.micro_batch([([4, 5, 6], 1, [1.0])])
    empty = dataclasses.replace(batch, logit_index=batch.logit_index[:0], targets=batch.targets[:0])
    shard = Shard.of(empty, Context(None, 1, 2))
    assert (shard.mine.numel(), shard.order.numel(), shard.most) == (0, 0, 1)


def test_a_model_that_keeps_its_arguments_back_is_noticed():
    heads = torch.zeros(1, 2, 3, 4)
    with pytest.raises(RunError, match="Linear attends without knowing") as caught:
        shared_attention(torch.nn.Linear(1, 1), heads, heads, heads, None)
    assert caught.value.code == "M437"


def half_of_a_softmax(device="cpu", dtype=torch.float32, varlen=False):
    """Scores of segments of unequal length."""
    torch.manual_seed(0)
    bounds = [0, 1, 4, 20, 37]
    tensors = [torch.randn(bounds[-1], heads, 16, device=device, dtype=dtype) for heads in (6, 2, 2)]
    return tensors, bounds, Packing.between(bounds, torch.device(device), varlen=varlen)


def seen(bounds, window):
    """Which keys each query sees, ``[T, T]``."""
    places = torch.arange(bounds[-1])
    segment = torch.bucketize(places, torch.tensor(bounds[1:]), right=True)
    back = places[:, None] - places
    return (segment[:, None] == segment) & (back >= 0) & (back < (window or bounds[-1]))


def check_block(device, dtype, window, varlen, tolerance):
    tensors, bounds, packing = half_of_a_softmax(device, dtype, varlen)
    wide = [x.detach().double().cpu().requires_grad_() for x in tensors]
    query, key, value = wide[0], *(x.repeat_interleave(3, 1) for x in wide[1:])
    scores = torch.einsum("qhd,khd->hqk", query, key) * 0.3
    scores = scores.masked_fill(~seen(bounds, window), float("-inf"))
    lse = scores.logsumexp(-1).T
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
    grad = torch.randn_like(out)
    found, normaliser = block_forward(*tensors, Scores(packing, 0.3, window))
    assert torch.allclose(found.double().cpu(), out, atol=tolerance)
    assert torch.allclose(normaliser.double().cpu(), lse, atol=tolerance)
    # The whole softmax has as many keys again, of the same scores: half the weight, and half the gradient.
    given = grad.to(device, dtype), *tensors, found, normaliser + math.log(2)
    wanted = torch.autograd.grad((out * grad).sum() / 2, wide)
    for got, want in zip(block_backward(*given, Scores(packing, 0.3, window)), wanted, strict=True):
        assert torch.allclose(got.double().cpu(), want, atol=2 * tolerance)


@pytest.mark.parametrize("window", [None, 5])
def test_blocks_of_a_softmax_are_written_out(window, monkeypatch):
    monkeypatch.setattr("miles_fsdp.blocks.ROWS", 6)
    check_block("cpu", torch.float32, window, varlen=False, tolerance=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 5])
def test_blocks_of_a_softmax_by_variable_length_kernels(window):
    check_block("cuda", torch.bfloat16, window, varlen=True, tolerance=5e-2)
