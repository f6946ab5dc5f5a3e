"""``--true-on-policy-mode``: rollout and training log-probs are the same bits."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MEAN = "train/train_rollout_logprob_abs_diff"


@pytest.fixture
def ragged(task, tmp_path: Path) -> Path:
    """The task's prompts at many lengths."""
    lines = [json.loads(line) for line in task.train.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line["question"] = " ".join(itertools.repeat(line["question"], 1 + number % 7))
    path = tmp_path / "ragged.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def test_the_difference_is_exactly_zero(task, ragged: Path, cluster, miles, metrics, tmp_path: Path) -> None:
    """Two packed ranks of several steps, with another temperature and a filter of the sampler; then one that pads."""
    options = {"prompt_data": ragged, "attn_implementation": None, "rollout_max_response_len": 40}
    runs = {
        "packed": (
            *task.arguments(trainers=2, **options, rollout_temperature=0.8, rollout_top_p=0.9, max_tokens_per_gpu=400),
            *("--num-steps-per-rollout", 2, "--use-rollout-logprobs"),
        ),
        "padded": (
            *task.arguments(**options, use_dynamic_batch_size=None, max_tokens_per_gpu=None),
            *("--qkv-format", "bshd", "--micro-batch-size", 5, "--log-probs-chunk-size", 7, "--gradient-checkpointing"),
        ),
    }
    for name, arguments in runs.items():
        run_dir = tmp_path / name
        done = miles(
            *("run", *arguments, "--true-on-policy-mode", "--num-rollout", 2),
            *("--run-dir", run_dir, "--ray-address", cluster),
        )
        assert "nobody read" not in done.stdout + done.stderr
        found = metrics(run_dir)
        assert [value for _, value in found[MEAN]] == [0.0] * 2
        assert [value for _, value in found[f"{MEAN}_max"]] == [0.0] * 2
        assert [value for _, value in found["train/ppo_kl"]][:: len(found["train/ppo_kl"]) // 2] == [0.0] * 2
        assert all(value > 0 for _, value in found["train/grad_norm"])


def test_without_the_mode_it_is_not(task, ragged: Path, cluster, miles, metrics, tmp_path: Path) -> None:
    arguments = task.arguments(prompt_data=ragged, attn_implementation=None, rollout_max_response_len=40)
    miles("run", *arguments, "--num-rollout", 1, "--run-dir", tmp_path / "run", "--ray-address", cluster)
    ((_, largest),) = metrics(tmp_path / "run")[f"{MEAN}_max"]
    assert largest > 0.0
