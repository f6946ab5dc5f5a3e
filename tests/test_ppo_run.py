"""PPO through ``miles run``: an actor and a critic, with real workers."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TIMES = ("perf/", "_time")


def numbers(run_dir: Path, first: int, steps: int) -> list[dict[str, object]]:
    """Logged rows of rollouts from ``first`` on, without timings."""
    rows = []
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        axis = first * steps if any(name.startswith("train/") for name in row) else first
        if row["step"] >= axis:
            rows.append({k: v for k, v in row.items() if k != "time" and not any(t in k for t in TIMES)})
    return rows


def weights(folder: Path) -> str:
    """SHA-256 of exported weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_actor_and_critic(task, cluster, miles, metrics, tmp_path: Path) -> None:
    common = task.arguments(
        algo="ppo",
        num_rollout=3,
        num_steps_per_rollout=2,
        num_critic_only_steps=1,
        critic_lr="1e-2",
        critic_lr_warmup_iters=1,
        ray_address=cluster,
    )
    whole = tmp_path / "whole"
    state = tmp_path / "state"
    done = miles("run", *common, "--run-dir", whole, "--save-hf", tmp_path / "hf", "--save", state, "--save-interval", 1)
    assert "nobody read" not in done.stdout + done.stderr
    assert "value loss" in done.stdout
    assert "critic on 1" in done.stdout
    found = metrics(whole)
    assert [step for step, _ in found["train/critic-value_loss"]] == list(range(6))
    assert [value for _, value in found["train/critic-lr-pg_0"]] == [0.0] + [0.01] * 5
    assert all(math.isfinite(value) and value > 0 for _, value in found["train/critic-grad_norm"])
    assert [step for step, _ in found["train/critic-explained_variance"]] == [0, 2, 4]
    assert [step for step, _ in found["rollout/values"]] == [0, 1, 2]
    # In the first rollout the critic is trained alone; every first step of it is where its old values are.
    assert [step for step, _ in found["train/loss"]] == [2, 3, 4, 5]
    assert all(value == 0 for step, value in found["train/critic-value_clipfrac"] if step % 2 == 0)
    assert all(abs(value) < 1e-5 for step, value in found["train/ppo_kl"] if step % 2 == 0)
    assert "critic-0" in json.loads((whole / "processes.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "hf-critic" / "config.json").read_text(encoding="utf-8"))["id2label"] == {"0": "value"}

    # Stopped after the rollout that trained the critic alone, and gone on with: the same, bit for bit.
    for later in ("step_0000001", "step_0000002"):
        (state / later).rename(tmp_path / later)
    (state / "latest").unlink()
    miles("run", *common, "--run-dir", tmp_path / "rest", "--load", state, "--save-hf", tmp_path / "rest-hf")
    assert numbers(tmp_path / "rest", 1, 2) == numbers(whole, 1, 2)
    assert weights(tmp_path / "rest-hf") == weights(tmp_path / "hf")
    assert weights(tmp_path / "rest-hf-critic") == weights(tmp_path / "hf-critic")


def test_a_critic_on_devices_of_its_own(task, cluster, miles, metrics, tmp_path: Path) -> None:
    """Two critic ranks for one of the actor, trained at once, from an exported critic; against a colocated run."""
    shared = {"algo": "ppo", "num_rollout": 1, "num_steps_per_rollout": 2, "critic_lr": "1e-3"}
    shared |= {"kl_coef": 0.05, "normalize_advantages": True, "ray_address": cluster}
    colocated, apart = task.arguments(**shared), task.arguments(engines=1, critic_num_gpus_per_node=2, **shared)
    miles("run", *colocated, "--run-dir", tmp_path / "one", "--save-hf", tmp_path / "hf")
    miles("run", *apart, "--run-dir", tmp_path / "two")
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    names = [name for name in one if name.startswith(("train/", "rollout/")) and "mismatch" not in name and "_diff" not in name]
    assert "train/critic-value_loss" in names
    assert "train/critic-grad_norm" in names
    for name in names:
        assert [v for _, v in two[name]] == pytest.approx([v for _, v in one[name]], rel=2e-3, abs=1e-5), name
    assert {"critic-0", "critic-1"} <= json.loads((tmp_path / "two" / "processes.json").read_text(encoding="utf-8")).keys()

    warm = task.arguments(critic_load=tmp_path / "hf-critic", **shared)
    miles("run", *warm, "--run-dir", tmp_path / "warm")
    moved = metrics(tmp_path / "warm")["rollout/values"][0][1] - one["rollout/values"][0][1]
    assert abs(moved) > 1e-3, "the critic starts from the head that was trained before"
