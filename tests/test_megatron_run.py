"""GRPO through ``miles run --backend megatron``, with two ranks on a CPU, against the fsdp backend with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ON_CPU = str(Path(__file__).parent / "megatron_on_cpu")


def test_two_tensor_ranks_train_as_the_fsdp_backend_does(task, cluster, miles, metrics, tmp_path: Path) -> None:
    common = {"num_rollout": 1, "num_steps_per_rollout": 2, "kl_loss_coef": 0.1, "use_kl_loss": True, "max_tokens_per_gpu": 128}
    split = {"backend": "megatron", "tensor_model_parallel_size": 2, "sequence_parallel": True, "attn_implementation": None}
    checks = {"check_weight_update_equal": True, "save_hf": tmp_path / "hf", "recompute_granularity": "full"}
    variables = json.dumps({"MEGATRON_TEST": 1})
    arguments = task.arguments(trainers=2, train_env_vars=variables, **split, **checks, **common)
    # A cluster of its own: processes of the shared one started without the search path.
    done = miles("run", *arguments, "--run-dir", tmp_path / "megatron", PYTHONPATH=ON_CPU)
    assert "nobody read" not in done.stdout + done.stderr
    miles("run", *task.arguments(ray_address=cluster, **common), "--run-dir", tmp_path / "fsdp")
    found, wanted = metrics(tmp_path / "megatron"), metrics(tmp_path / "fsdp")
    names = [name for name in wanted if name.startswith(("train/", "rollout/")) and "mismatch" not in name and "_diff" not in name]
    assert {"train/loss", "train/grad_norm", "train/kl_loss", "rollout/log_probs"} <= set(names)
    assert len(found["train/loss"]) == 2
    assert all(value < 1e-4 for _, value in found["train/train_rollout_logprob_abs_diff"])
    for name in names:
        one, other = ([value for _, value in each[name]] for each in (found, wanted))
        assert one[0] == pytest.approx(other[0], rel=2e-3, abs=1e-5), name
        # Adam's first step moves each weight by the learning rate, also where the sign of a gradient of nearly 0 is rounding.
        assert one[1:] == pytest.approx(other[1:], rel=5e-2, abs=1e-3), name

    from transformers import AutoModelForCausalLM

    exported, before = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "hf", task.model))
    assert sum((a - b).abs().sum().item() for a, b in zip(exported.parameters(), before.parameters(), strict=True)) > 0


def test_sizes_that_do_not_fit_stop_the_run_before_it_starts(task, miles, tmp_path: Path) -> None:
    arguments = task.arguments(trainers=3, backend="megatron", tensor_model_parallel_size=3, attn_implementation=None)
    done = miles("run", *arguments, "--num-rollout", 1, "--run-dir", tmp_path / "run", code=2)
    assert "M550 miles-megatron" in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()
