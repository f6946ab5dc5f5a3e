"""Runs with the router in front of two engines: what they train on, in every loop, and what dies with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def rows(run_dir: Path, rollout: int) -> list[dict[str, object]]:
    lines = (run_dir / "samples" / f"rollout_{rollout}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_two_engines_behind_the_router_make_what_one_makes(task, cluster, miles, metrics, tmp_path: Path) -> None:
    """The same responses as without it, with an abort (partial rollouts), a key, and no token of old weights."""
    run_dir = tmp_path / "run"
    arguments = task.arguments(engines=2, use_miles_router=True, num_rollout=2, ray_address=cluster, run_dir=run_dir)
    done = miles("run", *arguments, "--miles-router-policy", "least-loaded", MILES_MILES_ROUTER_API_KEY="s3cret-key")
    assert "nobody read" not in done.stdout + done.stderr
    found = [rows(run_dir, rollout) for rollout in range(2)]
    assert [len(each) for each in found] == [32, 32]
    assert [{version for row in each for version, _ in row["weight_versions"]} for each in found] == [{1}, {2}]
    logs = {file.name: file.read_text("utf-8", "replace") for file in (run_dir / "logs").iterdir()}
    assert {"router-0.log", "engine-0.log", "engine-1.log"} <= set(logs)
    for file in run_dir.rglob("*"):
        assert not file.is_file() or b"s3cret-key" not in file.read_bytes(), file
    assert max(value for _, value in metrics(run_dir)["train/train_rollout_logprob_abs_diff"]) < 1e-4
