"""Over-sampling with partial rollouts on the real engine, with a resume between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OWN = """
def without_first(groups):
    groups[0][0].remove_sample = True


def note(rollout_id, rollout_data):
    rows = {len(rollout_data[key]) for key in ("log_probs", "advantages", "tokens")}
    with open(__file__ + ".log", "a") as file:
        print(rollout_id, *rows, file=file)
"""


def test_partial_rollouts_lose_no_group(task, cluster, miles, metrics, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN, encoding="utf-8")
    common = task.arguments(
        over_sampling_batch_size=8,
        partial_rollout=True,
        rollout_batch_size=4,
        rollout_max_response_len=48,
        transformers_max_batch=16,
        overlong_buffer_ratio=0.5,
        rollout_sample_filter_path=f"{own}:without_first",
        rollout_data_postprocess_path=f"{own}:note",
        logprob_diff_warn=50,
        logprob_diff_limit=100,
        ray_address=cluster,
        save=tmp_path / "state",
    )
    done = miles("run", *common, "--num-rollout", 2, "--run-dir", tmp_path / "first")
    assert "has no effect" not in done.stdout + done.stderr
    assert "nobody read" not in done.stdout + done.stderr
    miles("run", *common, "--num-rollout", 4, "--run-dir", tmp_path / "rest", "--load", tmp_path / "state")
    first, rest = metrics(tmp_path / "first"), metrics(tmp_path / "rest")
    left = [
        sum(found[f"rollout/{name}"][i][1] for name in ("surplus_groups", "kept_groups"))
        for found in (first, rest)
        for i in range(2)
    ]
    resumed = [found["rollout/resumed_groups"][i][1] for found in (first, rest) for i in range(2)]
    # What a rollout leaves is what the next one takes up, over the resume as well.
    assert left[0] > 0
    assert resumed == [0, *left[:3]]
    samples = [
        json.loads(line)
        for folder, ids in (("first", (0, 1)), ("rest", (2, 3)))
        for i in ids
        for line in (tmp_path / folder / "samples" / f"rollout_{i}.jsonl").read_text("utf-8").splitlines()
    ]
    assert len({sample["index"] for sample in samples}) == len(samples) == 4 * 16
    for sample in samples:
        assert sum(tokens for _, tokens in sample["weight_versions"]) == sample["response_tokens"] <= 48
    assert any(len(sample["weight_versions"]) > 1 for sample in samples)
    assert max(value for _, value in rest["rollout/staleness_max"]) >= 1
    assert [value for _, value in rest["rollout/removed_samples"]] == [1, 1]
    assert (tmp_path / "own.py.log").read_text("utf-8").splitlines() == [f"{i} 16" for i in range(4)]
