"""Every logger in one run, which is resumed in its own folder, and what is told of it afterwards."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("wandb")
pytest.importorskip("tensorboard")
pytestmark = pytest.mark.slow

KEY = "feedc0de" * 5


def test_a_run_with_all_loggers_resumed_in_its_folder(task, cluster, miles, metrics, tmp_path: Path) -> None:
    run_dir, state = tmp_path / "runs" / "logged", tmp_path / "state"
    common = (
        *("run", *task.arguments(num_steps_per_rollout=2, dynamic_sampling_filter_path="nonzero_std", rollout_shuffle=True)),
        *("--eval-prompt-data", "heldout", f"{task.heldout}@[0:8]", "--eval-interval", 2, "--n-samples-per-eval-prompt", 2),
        *("--use-wandb", "--wandb-mode", "offline", "--wandb-project", "p", "--wandb-key", KEY, "--use-tensorboard"),
        *("--log-passrate", "--log-correct-samples", "--log-multi-turn", "--log-reward-category", "kind"),
        *("--save", state, "--save-interval", 1, "--run-dir", run_dir, "--ray-address", cluster),
    )
    quiet = {"NETRC": str(tmp_path / "netrc"), "TENSORBOARD_DIR": str(tmp_path / "boards")}
    done = miles(*common, "--num-rollout", 3, **quiet)
    assert "nobody read" not in done.stdout + done.stderr
    assert f"miles report {run_dir}" in done.stdout
    # The last rollout is made again, and two more.
    newest = max(state.glob("step_*"))
    newest.rename(tmp_path / "aside")
    (state / "latest").unlink()
    miles(*common, "--num-rollout", 4, "--load", state, **quiet)

    found = metrics(run_dir)
    assert [step for step, _ in found["rollout/raw_reward"]] == [0, 1, 2, 3]
    assert [step for step, _ in found["train/loss"]] == list(range(8))
    assert [step for step, _ in found["eval/heldout"]] == [0, 2, 4]
    for name in ("passrate/pass@4", "multi_turn/wo_obs_response_length/response_length_mean", "rollout/error_cat/missing"):
        assert [step for step, _ in found[name]] == [0, 1, 2, 3]
    assert [step for step, _ in found["eval/heldout-pass@2"]] == [0, 2, 4]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "boards" / "logged"), size_guidance={"scalars": 0})
    board.Reload()
    assert set(board.Tags()["scalars"]) == set(found)
    for name in ("train/loss", "rollout/raw_reward", "eval/heldout"):
        assert [each.step for each in board.Scalars(name)] == [step for step, _ in found[name]]
        assert [each.value for each in board.Scalars(name)] == pytest.approx([value for _, value in found[name]])

    logged = json.loads((run_dir / "wandb.json").read_text(encoding="utf-8"))
    assert logged["last"] == {"train": 7, "rollout": 3, "eval": 4}
    assert len(list(run_dir.glob(f"wandb/offline-run-*-{logged['run_id']}"))) == 2
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]

    spans = [json.loads(line) for line in (run_dir / "timeline.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = Counter((row["phase"], row["rollout"]) for row in spans)
    assert all(
        counts[phase, rollout] == 1 for phase in ("rollout", "train", "save", "publish") for rollout in range(4) if rollout != 1
    )

    samples = [json.loads(line) for line in (run_dir / "samples" / "rollout_0.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in samples:
        assert (
            len(row["log_probs"]) == len(row["token_ends"]) == row["response_tokens"] == sum(n for _, n in row["weight_versions"])
        )
        assert row["token_ends"][-1] == len(row["response"])
    dropped = [row["dropped"] for row in samples if "dropped" in row]
    assert len(dropped) == min(32, sum(4 * int(v) for name in found if "/drop_" in name for s, v in found[name] if s == 0))
    assert all(re.fullmatch(r"zero_std_[\d.]+", reason) for reason in dropped)

    shown = json.loads(miles("runs", "show", str(run_dir), "--json").stdout)
    assert (shown["state"], shown["done"], shown["total"]) == ("finished", 4, 4)
    assert shown["evaluations"] == {"heldout": found["eval/heldout"][-1][1]}
    miles("report", str(run_dir), "-o", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "rollout/raw_reward" in page
    assert KEY not in page
    if folder := os.environ.get("MILES_SCREENSHOTS"):
        Path(folder, "run.html").write_text(page, encoding="utf-8")
