"""GRPO through ``miles run`` with two ranks that share the tokens of every row and hold all weights each, against one rank."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_two_context_ranks_train_as_one_does(task, cluster, miles, metrics, tmp_path: Path) -> None:
    common = {"num_rollout": 1, "num_steps_per_rollout": 2, "kl_loss_coef": 0.1, "use_kl_loss": True, "ray_address": cluster}
    # Two ranks have room for twice the tokens of one.
    sizes = {"context_parallel_size": 2, "dp_replicate_size": 2}
    shared = task.arguments(trainers=2, max_tokens_per_gpu=64, check_weight_update_equal=True, **sizes, **common)
    alone = task.arguments(max_tokens_per_gpu=128, **common)
    done = miles("run", *shared, "--run-dir", tmp_path / "two")
    assert "nobody read" not in done.stdout + done.stderr
    miles("run", *alone, "--run-dir", tmp_path / "one")
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    names = [name for name in one if name.startswith(("train/", "rollout/")) and "mismatch" not in name and "_diff" not in name]
    assert {"train/loss", "train/grad_norm", "train/kl_loss", "rollout/log_probs"} <= set(names)
    assert len(two["train/loss"]) == 2
    for name in names:
        assert [v for _, v in two[name]] == pytest.approx([v for _, v in one[name]], rel=2e-3, abs=1e-5), name


def test_ranks_that_do_not_divide_stop_the_run_before_it_starts(task, miles, tmp_path: Path) -> None:
    arguments = task.arguments(trainers=3, context_parallel_size=2, dp_replicate_size=2, rollout_batch_size=9, num_rollout=1)
    done = miles("run", *arguments, "--run-dir", tmp_path / "run", code=2)
    assert "M338 miles-fsdp" in done.stdout + done.stderr
    assert "M580 miles-fsdp" in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()
