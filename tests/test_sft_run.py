"""Supervised fine-tuning through ``miles run``."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_same_command_with_the_sft_loss_fine_tunes(task, cluster, miles, metrics, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = task.arguments(trainers=2)
    done = miles("run", *arguments, "--loss-type", "sft_loss", "--num-rollout", 12, "--run-dir", run_dir, "--ray-address", cluster)
    losses = [value for _, value in metrics(run_dir)["train/loss"]]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.3
    assert "n-samples-per-prompt" in done.stdout + done.stderr, "the option that means nothing here is named"
