"""A run whose responses are made in turns, by the example of docs/multi-turn.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "multi-turn.md"


@pytest.mark.slow
def test_observed_tokens_are_not_trained_on(task, cluster, miles, metrics, tmp_path: Path) -> None:
    found = re.search(r"## A generate function\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    own = tmp_path / "mine.py"
    own.write_text(found[1], encoding="utf-8")
    done = miles(
        "run",
        *task.arguments(
            num_rollout=2,
            custom_generate_function_path=f"{own}:checked",
            rollout_max_response_len=9,
            log_multi_turn=True,
            eval_interval=2,
            eval_max_response_len=6,
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
    observed = [sample for sample in samples if "loss_mask" in sample]
    assert observed
    for sample in samples:
        assert sample["response_tokens"] <= 9
        assert sum(count for _, count in sample["weight_versions"]) == sample["response_tokens"]
    for sample in observed:
        zeros = [i for i, keep in enumerate(sample["loss_mask"]) if keep == "0"]
        assert zeros == list(range(zeros[0], zeros[-1] + 1))
        assert all((sample["log_probs"][i] == 0.0) == (i in zeros) for i in range(sample["response_tokens"]))
    # The trainer sees the engine's tokens: a token that was tokenised again would show here.
    assert max(value for _, value in logged["train/train_rollout_logprob_abs_diff"]) < 1e-4
    assert logged["multi_turn/multi_turn_metric/round_number_max"][0][1] == 2
    assert (
        logged["multi_turn/wo_obs_response_length/response_length_mean"]
        < logged["multi_turn/raw_response_length/response_length_mean"]
    )
    assert [step for step, _ in logged["eval/heldout"]] == [0, 2]
