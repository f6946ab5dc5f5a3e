"""A black-box agent makes a run's samples through its chat endpoint, by the example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

AGENT = Path(__file__).parent.parent / "examples" / "black-box-agent" / "agent.py"


@pytest.mark.slow
def test_a_black_box_agent_trains_the_model(task, cluster, miles, metrics, tmp_path: Path) -> None:
    done = miles(
        "run",
        *task.arguments(
            num_rollout=2,
            custom_generate_function_path=f"{AGENT}:agent",
            custom_rm_path=f"{AGENT}:reward",
            rollout_max_response_len=60,
            log_multi_turn=True,
            eval_interval=2,
            eval_max_response_len=60,
            ray_address=cluster,
            run_dir=tmp_path / "run",
        ),
        *("--eval-prompt-data", "heldout", f"{task.heldout}@[0:8]"),
    )
    assert "nobody read" not in done.stdout + done.stderr
    logged = metrics(tmp_path / "run")
    samples = [
        json.loads(line)
        for i in range(2)
        for line in (tmp_path / "run" / "samples" / f"rollout_{i}.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(samples) == 2 * 32
    for sample in samples:
        assert sample["prompt"].startswith("<|im_start|>user\nsort ")
        assert sum(count for _, count in sample["weight_versions"]) == sample["response_tokens"]
    twice = [sample for sample in samples if "loss_mask" in sample]
    assert twice
    for sample in twice:
        assert "<|im_end|>\n<|im_start|>user\nwrong, try again<|im_end|>\n<|im_start|>assistant\n" in sample["response"]
        pairs = zip(sample["loss_mask"], sample["log_probs"], strict=True)
        assert all((mask == "0") == (value == 0.0) for mask, value in pairs)
    # The trainer computes the same log-probs for the session's tokens: a token that was made anew from text would show here.
    assert max(value for _, value in logged["train/train_rollout_logprob_abs_diff"]) < 1e-4
    assert logged["multi_turn/multi_turn_metric/round_number_max"][0][1] == 2
    assert [step for step, _ in logged["eval/heldout"]] == [0, 2]
