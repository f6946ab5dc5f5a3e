"""Resuming equals never having stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TIMES = ("perf/", "_time")
ALGORITHM = {
    "use_kl_loss": True,
    "kl_loss_coef": 0.01,
    "kl_loss_type": "low_var_kl",
    "ref_update_interval": 2,
    "reset_optimizer_states": True,
    "normalize_advantages": True,
    "use_tis": True,
    "keep_old_actor": True,
    "use_rollout_entropy": True,
    "recompute_loss_function": True,
    "use_opsm": True,
    "loss_length_divisor": 0,
}
"""Options of algorithms that keep something from one rollout to the next, or are computed beside the loss."""


def numbers(run_dir: Path, first: int, steps: int) -> list[dict[str, object]]:
    """Logged rows of rollouts from ``first`` on, without timings."""
    rows = []
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        axis = first * steps if any(name.startswith("train/") for name in row) else first
        kept = {k: v for k, v in row.items() if k != "time" and not any(t in k for t in TIMES)}
        if row["step"] >= axis and not any(name.startswith("eval/") for name in row):
            rows.append(kept)
    return rows


def weights(folder: Path) -> str:
    """SHA-256 of all exported weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("trainers", [1, 2])
def test_resuming_is_bit_for_bit(trainers: int, task, cluster, miles, tmp_path: Path) -> None:
    common = task.arguments(
        trainers,
        num_steps_per_rollout=2,
        rollout_shuffle=True,
        lr_decay_style="cosine",
        lr_warmup_iters=2,
        num_rollout=5,
        ray_address=cluster,
        dynamic_sampling_filter_path="nonzero_std" if trainers == 1 else None,
        **(ALGORITHM if trainers == 1 else {}),
    )
    state = tmp_path / "state"
    # Of the run with two trainers every state is written while what follows goes on.
    beside = ("--async-save",) if trainers == 2 else ()
    saving = ("--save", state, "--save-interval", 2, "--save-total-limit", 2, *beside)
    whole = miles("run", *common, *saving, "--run-dir", tmp_path / "whole", "--save-hf", tmp_path / "whole-hf")
    assert "nobody read" not in whole.stdout
    saved = sorted(p.name for p in state.iterdir() if p.name.startswith("step_"))
    assert len(saved) == 2, saved
    # Take away the newest state: go on from the one after rollout 4 of 5.
    newest = state / saved[-1]
    newest.rename(tmp_path / "aside")
    (state / "latest").unlink()
    miles("run", *common, "--run-dir", tmp_path / "rest", "--load", state, "--save-hf", tmp_path / "rest-hf")
    assert numbers(tmp_path / "rest", 4, 2) == numbers(tmp_path / "whole", 4, 2)
    assert weights(tmp_path / "rest-hf") == weights(tmp_path / "whole-hf")
