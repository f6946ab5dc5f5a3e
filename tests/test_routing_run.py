"""Routing replay of a small mixture of experts through ``miles run``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mixture(task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's tokenizer with a random Qwen3-MoE whose second layer is dense."""
    import torch
    from transformers import AutoConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("mixture") / "model"
    shutil.copytree(task.model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    base = AutoConfig.from_pretrained(task.model)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=base.vocab_size,
        eos_token_id=base.eos_token_id,
        pad_token_id=base.pad_token_id,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        mlp_only_layers=[1],
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("flag", ["--use-routing-replay", "--use-rollout-routing-replay"])
def test_grpo_on_a_mixture_of_experts(task, mixture, cluster, miles, metrics, tmp_path: Path, flag: str) -> None:
    run_dir = tmp_path / "run"
    done = miles(
        *("run", *task.arguments(hf_checkpoint=mixture, lr="1e-2"), flag, "--gradient-checkpointing"),
        *("--num-rollout", 2, "--num-steps-per-rollout", 2, "--run-dir", run_dir, "--ray-address", cluster),
    )
    assert "nobody read" not in done.stdout + done.stderr
    found = metrics(run_dir)
    assert [step for step, _ in found["rollout/raw_reward"]] == [0, 1]
    assert all(value < 1e-4 for _, value in found["train/train_rollout_logprob_abs_diff"])
    # The first of a rollout's steps has the weights that the routes are of.
    assert all(abs(value) < 1e-5 for step, value in found["train/ppo_kl"] if step % 2 == 0)
    assert any(abs(value) > 1e-5 for step, value in found["train/ppo_kl"] if step % 2 == 1)
    assert all(value > 0 for _, value in found["train/grad_norm"])


def test_a_dense_model_has_nothing_to_replay(task, miles, tmp_path: Path) -> None:
    done = miles("run", *task.arguments(), "--num-rollout", 1, "--run-dir", tmp_path / "run", "--use-routing-replay", code=2)
    assert "M276" in done.stderr
    assert "Traceback" not in done.stderr
