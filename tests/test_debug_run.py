"""Halves of a run through ``miles run``: rollouts are saved, trained on again, and made without trainers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from miles_core.debug.rollout_file import read_rollout
from miles_core.debug.train_file import read_training

pytestmark = pytest.mark.slow


def test_saved_rollouts_train_to_the_same_bits(task, cluster, miles, metrics, tmp_path: Path) -> None:
    details = tmp_path / "details"
    shared = ("--num-rollout", 2, "--num-steps-per-rollout", 2, "--ray-address", cluster, "--dump-details")
    miles("run", *task.arguments(), *shared, details, "--save-hf", tmp_path / "a", "--run-dir", tmp_path / "first")

    saved = read_rollout(details / "rollout_data" / "1.npz")
    assert (saved.rollout_id, len(saved.samples)) == (1, 32)
    assert all(sample.finished and sample.rollout_log_probs for sample in saved.samples)
    assert (details / "tokenizer" / "tokenizer.json").is_file()
    computed = read_training(details / "train_data" / "1_0.npz")
    assert {"advantages", "log_probs", "old_log_probs", "rollout_log_probs", "mask"} <= computed.fields.keys()
    gap = np.abs(computed.fields["log_probs"] - computed.fields["rollout_log_probs"]) * computed.fields["mask"]
    assert gap.max() < 1e-3

    again = ("--load-debug-rollout-data", details / "rollout_data" / "{rollout_id}.npz", "--save-hf", tmp_path / "b")
    profile = ("--profile-target", "train_actor", "train_log_probs", "--profile-step-start", 1, "--profile-step-end", 2)
    done = miles(
        *("run", *task.arguments(prompt_data=None, custom_rm_path=None), *shared, tmp_path / "again", *again, *profile),
        *("--run-dir", tmp_path / "second"),
    )
    assert "rollouts are read from" in done.stdout + done.stderr
    first, second = metrics(tmp_path / "first"), metrics(tmp_path / "second")
    compared = [name for name in first if name.startswith("train/")]
    assert {"train/loss", "train/grad_norm", "train/ppo_kl"} <= set(compared)
    assert {name: second[name] for name in compared} == {name: first[name] for name in compared}
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    processes = json.loads((tmp_path / "second" / "processes.json").read_text(encoding="utf-8"))
    assert "trainer-0" in processes
    assert not any(name.startswith("engine") for name in processes)

    traces = sorted((tmp_path / "second" / "profile").iterdir())
    assert [trace.name for trace in traces] == [
        "train_actor_actor_train_rollout1_1_rank0.json.gz",
        "train_actor_actor_train_rollout1_2_rank0.json.gz",
        "train_log_probs_log_probs_rollout1_0_rank0.json.gz",
    ]
    with gzip.open(traces[0]) as file:
        events = json.load(file)["traceEvents"]
    assert any("mm" in str(event.get("name")) for event in events if event.get("ph") == "X")


def test_rollouts_without_trainers(task, cluster, miles, metrics, tmp_path: Path) -> None:
    miles(
        *("run", *task.arguments(), "--num-rollout", 2, "--debug-rollout-only", "--ray-address", cluster),
        *("--save-debug-rollout-data", tmp_path / "{rollout_id}.npz", "--run-dir", tmp_path / "run"),
        *("--eval-prompt-data", "heldout", f"{task.heldout}@[0:4]", "--eval-interval", 1),
    )
    found = metrics(tmp_path / "run")
    assert [step for step, _ in found["rollout/raw_reward"]] == [0, 1]
    assert not any(name.startswith("train/") for name in found)
    processes = json.loads((tmp_path / "run" / "processes.json").read_text(encoding="utf-8"))
    assert "engine-0" in processes
    assert not any(name.startswith("trainer") for name in processes)
    ids = [{sample.index for sample in read_rollout(tmp_path / f"{n}.npz").samples} for n in range(2)]
    assert len(ids[0]) == len(ids[1]) == 32
    assert not ids[0] & ids[1]
    assert len(read_rollout(tmp_path / "eval_2.npz").samples) == 4
