"""The loops on the real engine: which versions make what is trained on, and that nothing is lost or comes twice over a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DIFFERENCE = "train/train_rollout_logprob_abs_diff"
ROUNDING = 1e-4


def samples(run_dir: Path, rollouts: range) -> list[dict[str, object]]:
    """What was trained on in some rollouts of a run."""
    files = [run_dir / "samples" / f"rollout_{rollout_id}.jsonl" for rollout_id in rollouts]
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    return [row for row in rows if not row.get("dropped")]


def values(found: dict[str, list[tuple[int, float]]], name: str) -> list[float]:
    return [value for _, value in found[name]]


def test_engines_serve_old_weights_between_publishes(task, cluster, miles, metrics, tmp_path: Path) -> None:
    """Rollouts 0 to 4 with a publish after every third: versions 1 1 1 2 2, and old log-probs of just these."""
    arguments = task.arguments(
        update_weights_interval=3, keep_old_actor=True, offload_rollout=None, num_rollout=5, ray_address=cluster
    )
    done = miles("run", *arguments, "--no-offload-rollout", "--run-dir", tmp_path / "run")
    assert "nobody read" not in done.stdout + done.stderr
    versions = [
        {version for s in samples(tmp_path / "run", range(i, i + 1)) for version, _ in s["weight_versions"]} for i in range(5)
    ]
    assert versions == [{1}, {1}, {1}, {2}, {2}]
    found = metrics(tmp_path / "run")
    assert values(found, "rollout/staleness_max") == [0.0] * 5
    # The copy that is kept is what the engines serve; without it, this is as far off as two optimizer steps lead.
    assert max(values(found, DIFFERENCE)) < ROUNDING
    assert max(values(found, "train/ppo_kl")[1:3]) > ROUNDING


@pytest.mark.parametrize(
    ("loop", "options"),
    [("one-step", {"keep_old_actor": True}), ("async", {"use_rollout_logprobs": True, "max_staleness": 2})],
)
def test_nothing_is_lost_or_comes_twice_over_a_resume(loop: str, options, task, cluster, miles, metrics, tmp_path: Path) -> None:
    common = task.arguments(
        engines=1,
        loop=loop,
        num_rollout=6,
        rollout_shuffle=True,
        eval_interval=3,
        dynamic_sampling_filter_path="nonzero_std",
        ray_address=cluster,
        save=tmp_path / "state",
        save_interval=1,
        **options,
    )
    common += ["--eval-prompt-data", "heldout", f"{task.heldout}@[0:8]"]
    done = miles("run", *common, "--run-dir", tmp_path / "first")
    assert "nobody read" not in done.stdout + done.stderr
    for folder in sorted((tmp_path / "state").glob("step_*"))[3:]:
        folder.rename(tmp_path / folder.name)
    (tmp_path / "state" / "latest").unlink()
    miles("run", *common, "--run-dir", tmp_path / "rest", "--load", tmp_path / "state")
    first, rest = metrics(tmp_path / "first"), metrics(tmp_path / "rest")
    assert [step for step, _ in first["rollout/raw_reward"]] == list(range(6))
    assert [step for step, _ in rest["rollout/raw_reward"]] == [3, 4, 5]
    assert len(first["eval/heldout"]) == 3
    bound = options.get("max_staleness", 1)
    assert max(values(first, "rollout/staleness_max")) >= 1
    for found in (first, rest):
        assert max(values(found, "rollout/staleness_max")) <= bound
    if loop == "one-step":
        assert values(first, "rollout/staleness_max") == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        # The version before the one that engines serve is the one that made the rollout.
        assert max(values(first, DIFFERENCE) + values(rest, DIFFERENCE)) < ROUNDING
    for run in ([("first", range(6))], [("first", range(3)), ("rest", range(3, 6))]):
        trained = [sample["index"] for folder, rollouts in run for sample in samples(tmp_path / folder, rollouts)]
        assert len(trained) == len(set(trained)) == 6 * 32
