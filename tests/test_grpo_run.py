"""GRPO through ``miles run``, with real workers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_two_training_ranks_and_two_engines(task, cluster, miles, metrics, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = miles(
        *("run", *task.arguments(trainers=2), "--num-rollout", 3, "--num-steps-per-rollout", 2, "--balance-data"),
        *("--eval-prompt-data", "heldout", f"{task.heldout}@[0:32]", "--eval-interval", 2, "--check-weight-update-equal"),
        *("--save", tmp_path / "state", "--save-hf", tmp_path / "hf", "--run-dir", run_dir, "--ray-address", cluster),
    )
    assert "nobody read" not in done.stdout + done.stderr
    found = metrics(run_dir)
    assert [step for step, _ in found["rollout/raw_reward"]] == [0, 1, 2]
    assert [step for step, _ in found["train/loss"]] == list(range(6))
    assert [step for step, _ in found["eval/heldout"]] == [0, 2, 3]
    assert all(value < 1e-4 for _, value in found["train/train_rollout_logprob_abs_diff"])
    assert all(math.isfinite(value) and value > 0 for _, value in found["train/grad_norm"])
    # The first of a rollout's steps is on policy: its ratio is 1.
    assert all(abs(value) < 1e-5 for step, value in found["train/ppo_kl"] if step % 2 == 0)
    assert all(value == 0 for step, value in found["train/pg_clipfrac"] if step % 2 == 0)

    config = (run_dir / "config.yaml").read_text(encoding="utf-8")
    assert "hf-checkpoint" in config
    lock = json.loads((run_dir / "plugins.lock.json").read_text(encoding="utf-8"))
    assert "miles-fsdp" in json.dumps(lock)
    assert list((run_dir / "samples").glob("*.jsonl"))

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    before = AutoModelForCausalLM.from_pretrained(task.model)
    moved = sum((a - b).abs().sum().item() for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert moved > 0
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").chat_template


def test_a_run_that_only_evaluates(task, cluster, miles, metrics, tmp_path: Path) -> None:
    done = miles(
        *("run", *task.arguments(), "--num-rollout", 0, "--eval-interval", 1, "--eval-temperature", 0),
        *("--eval-prompt-data", "heldout", f"{task.heldout}@[0:16]", "--run-dir", tmp_path / "run", "--ray-address", cluster),
    )
    found = metrics(tmp_path / "run")
    assert [step for step, _ in found["eval/heldout"]] == [0]
    assert not any(name.startswith(("train/", "rollout/")) for name in found)
    assert "evaluation after 0 rollouts" in done.stdout


def test_trainer_and_engine_on_devices_of_their_own(task, cluster, miles, metrics, tmp_path: Path) -> None:
    done = miles(
        *("run", *task.arguments(trainers=1, engines=1, use_dynamic_batch_size=None, max_tokens_per_gpu=None)),
        *("--qkv-format", "bshd", "--micro-batch-size", 8, "--eval-top-p", 0.9),
        *("--num-rollout", 2, "--run-dir", tmp_path / "run", "--ray-address", cluster),
    )
    assert "--eval-top-p" in done.stdout + done.stderr, "an option that nobody read is reported"
    found = metrics(tmp_path / "run")
    assert len(found["rollout/raw_reward"]) == 2
    assert all(value < 1e-4 for _, value in found["train/train_rollout_logprob_abs_diff"])


def test_a_filter_a_kl_loss_and_options_by_file_and_environment(task, cluster, miles, metrics, tmp_path: Path) -> None:
    config = tmp_path / "more.yaml"
    config.write_text("use-kl-loss: true\nkl-loss-coef: 0.1\nkl-loss-type: low_var_kl\n", encoding="utf-8")
    miles(
        *(
            "run",
            *task.arguments(),
            "--num-rollout",
            2,
            "--run-dir",
            tmp_path / "run",
            "--ray-address",
            cluster,
            "--config",
            config,
        ),
        *("--calculate-per-token-loss", "--entropy-coef", 0.01),
        MILES_ROLLOUT_SEED="7",
    )
    found = metrics(tmp_path / "run")
    assert found["train/kl_loss"][0][1] == pytest.approx(0, abs=1e-6)
    assert found["train/kl_loss"][1][1] > 0
    assert found["train/entropy_loss"][0][1] > 0
    assert "rollout-seed: 7" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")


def test_gsm8k_with_a_chat_template_and_the_math_reward(task, cluster, miles, metrics, tmp_path: Path, gsm8k: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = task.arguments(prompt_data=f"{gsm8k}@[0:200]", custom_rm_path=None, rm_type="math", rollout_max_response_len=16)
    # A random model never boxes the right answer: every group is uninformative, which is counted and shown, not trained on.
    state = tmp_path / "state"
    done = miles("run", *arguments, "--num-rollout", 2, "--run-dir", run_dir, "--save", state, "--ray-address", cluster)
    found = metrics(run_dir)
    assert [value for _, value in found["rollout/raw_reward"]] == [0.0, 0.0]
    assert "no informative group" in done.stdout + done.stderr
    sample = json.loads(next((run_dir / "samples").glob("*.jsonl")).read_text(encoding="utf-8").splitlines()[0])
    assert sample["prompt"].startswith("<|im_start|>user\n")
    assert sample["prompt"].endswith("<|im_start|>assistant\n")

    again = miles("run", *arguments, "--num-rollout", 3, "--run-dir", tmp_path / "more", "--load", state, "--ray-address", cluster)
    assert "after rollout 1" in again.stdout
    assert [step for step, _ in metrics(tmp_path / "more")["rollout/raw_reward"]] == [2]
    before = {json.loads(line)["prompt"] for file in (run_dir / "samples").glob("*.jsonl") for line in file.open(encoding="utf-8")}
    after = {json.loads(line)["prompt"] for line in next((tmp_path / "more" / "samples").glob("*.jsonl")).open(encoding="utf-8")}
    assert not before & after, "the resumed run goes on with the prompts that follow"


def test_rollouts_without_an_informative_group_end_the_run(task, cluster, miles, tmp_path: Path) -> None:
    reward = tmp_path / "constant_reward.py"
    reward.write_text("async def score(sample):\n    return 1.0\n", encoding="utf-8")
    arguments = task.arguments(custom_rm_path="constant_reward.score")
    done = miles(
        *("run", *arguments, "--num-rollout", 9, "--max-skipped-rollouts", 2),
        *("--run-dir", tmp_path / "run", "--ray-address", cluster),
        code=1,
        PYTHONPATH=str(tmp_path),
    )
    assert "M490" in done.stderr
    assert "Traceback" not in done.stderr
