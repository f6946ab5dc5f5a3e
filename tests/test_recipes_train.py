"""Every recipe trains a real model on the fsdp backend: identities of the first step, and no dependence on the split."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from miles_algos.recipes import RECIPES
from miles_core.options.resolve import resolve
from miles_core.plugins import create
from miles_core.protocols import ModelSpec
from miles_core.training.rows import TrainRow
from miles_core.training.split import split_rows
from miles_core.training.trainer import Trainer

pytestmark = pytest.mark.slow

GROUPS, SAMPLES = 4, 4
NAMES = [recipe.name for recipe in RECIPES if recipe.advantage is not None]


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('meet') / 'file'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(task, name: str, *flags: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Metrics of two optimizer steps of a recipe on one rollout, and the weights before and after."""
    words = ["--backend", "fsdp", "--device", "cpu", "--attn-implementation", "sdpa", "--lr", "1e-3", "--algo", name]
    words += ["--n-samples-per-prompt", str(SAMPLES), "--rollout-max-response-len", "9", "--logprob-diff-limit", "100", *flags]
    if name == "opd":
        words += ["--teacher-url", "http://127.0.0.1:1"]
    if name == "dr_grpo":
        words += ["--loss-length-divisor", "9"]
    resolved = resolve(words, environment={})
    assert not resolved.errors, [error.line() for error in resolved.errors]
    config, chosen = resolved.config, resolved.selection
    loss, advantage, backend = (create(part, config) for part in (chosen.loss, chosen.advantage, chosen.backend))
    copies = ("ref",) if "ref_log_probs" in loss.needs | advantage.needs else ()
    backend.setup(ModelSpec(task.model, train_steps=10, copies=copies))
    before = {key: tensor.clone() for key, tensor in backend.export_weights()}
    batch = split_rows(rows(advantage), data_size=1, steps=2, balance=False, rollout_id=0)[0]
    report = Trainer(config, backend, loss, advantage).train(batch)
    return report.metrics_per_step, before, {key: tensor.clone() for key, tensor in backend.export_weights()}


def rows(advantage) -> list[TrainRow]:
    """Ragged samples with masked tokens, one of them wholly masked, and one group of equal rewards."""
    rng = np.random.default_rng(5)
    rewards = [float(rng.integers(0, 3)) if group else 1.0 for group in range(GROUPS) for _ in range(SAMPLES)]
    groups = [group for group in range(GROUPS) for _ in range(SAMPLES)]
    shaped = advantage.shape_rewards(rewards, groups)
    made = []
    for i, (reward, raw) in enumerate(zip(shaped, rewards, strict=True)):
        prompt, response = int(rng.integers(2, 6)), int(rng.integers(1, 10))
        mask = (rng.random(response) < (0 if i == SAMPLES + 1 else 0.8)).astype(np.float32)
        extras = {name: rng.normal(-2, 1, response).astype(np.float32) for name in ("teacher_log_probs", "values")}
        tokens = rng.integers(3, 20, prompt + response).astype(np.int32)
        made.append(
            TrainRow(
                index=i,
                group=groups[i],
                tokens=tokens,
                response_length=response,
                mask=mask,
                reward=reward,
                raw_reward=raw,
                extras=extras,
            )
        )
    return made


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_a_recipe(task, name: str) -> None:
    steps, before, whole = trained(task, name, "--micro-batch-size", "32")
    first, second = steps
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert first["train/ppo_kl"] == pytest.approx(0, abs=1e-6)
    assert second["train/ppo_kl"] != pytest.approx(0, abs=1e-6)
    assert first.get("train/pg_clipfrac", 0) == 0
    assert first["train/grad_norm"] > 1e-3
    if "train/kl_loss" in first:
        assert first["train/kl_loss"] == pytest.approx(0, abs=1e-6)
        assert second["train/kl_loss"] > 1e-6
    moved = {key: whole[key] - before[key] for key in whole}
    largest = max(float(change.abs().max()) for change in moved.values())
    assert largest > 1e-4
    packed, _, parts = trained(task, name, "--use-dynamic-batch-size", "--max-tokens-per-gpu", "24")
    for one, other in zip(steps, packed, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4, abs=1e-6)
        assert one["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-3)
    # Adam divides a gradient of nearly 0 by its own size, so rounding may move such a weight by a whole step: few may.
    apart = sum(int(((whole[key] - parts[key]).abs() > 0.05 * largest).sum()) for key in whole)
    assert apart <= 1e-3 * sum(tensor.numel() for tensor in whole.values())


LOSS_OF_LISTS = """
import torch


def clipped(args, batch, logits, sum_of_sample_mean):
    every = torch.log_softmax(logits, -1)
    log_probs = every.gather(1, torch.cat(batch["unconcat_tokens"])[:, None])[:, 0]
    old, advantages = torch.cat(batch["log_probs"]), torch.cat(batch["advantages"])
    ratio = (log_probs - old).exp()
    loss = sum_of_sample_mean(torch.maximum(-ratio * advantages, -ratio.clamp(0.8, 1.2) * advantages))
    return loss, {"ppo_kl": sum_of_sample_mean(old - log_probs).detach()}
"""


@pytest.mark.parametrize("reduction", [(), ("--calculate-per-token-loss",)], ids=["sample", "token"])
def test_a_loss_of_lists_and_logits_trains_as_the_packaged_one(task, tmp_path, reduction: tuple[str, ...]) -> None:
    path = tmp_path / "lists.py"
    path.write_text(LOSS_OF_LISTS, encoding="utf-8")
    function = ("--loss-type", "custom_loss", "--custom-loss-function-path", f"{path}:clipped")
    size = ("--use-dynamic-batch-size", "--max-tokens-per-gpu", "40")
    wanted, _, _ = trained(task, "grpo", *size, *reduction)
    found, _, _ = trained(task, "grpo", *size, *reduction, *function)
    for one, other in zip(wanted, found, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4, abs=1e-6)
        assert one["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-3)
        assert one["train/ppo_kl"] == pytest.approx(other["train/ppo_kl"], rel=1e-3, abs=1e-6)
