"""The end-of-run summary."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_core.config import CheckpointOptions
from miles_core.loggers.summary import summary, write_summary
from miles_core.plugins.refs import PluginRef
from miles_core.runtime.loop import History
from miles_core.runtime.plan import BatchPlan, PlacementPlan, PluginPlan, RunPlan


def ref(kind: str, name: str, *capabilities: str) -> PluginRef:
    return PluginRef(kind, name, "miles-x", "0.1.0", "miles_x:make", capabilities=frozenset(capabilities))


def plan(run_dir: Path, *, supervised: bool = False) -> RunPlan:
    return RunPlan(
        plugins=PluginPlan(
            backend=ref("backend", "fsdp"),
            loss=ref("loss", "sft_loss", "supervised") if supervised else ref("loss", "policy_loss"),
            engine=None if supervised else ref("engine", "transformers"),
            advantage=None if supervised else ref("advantage", "grpo"),
            reward=None if supervised else ref("reward", "exact"),
        ),
        batch=BatchPlan(64, 1 if supervised else 8, 64 if supervised else 256, 1 if supervised else 2, 120, None),
        placement=PlacementPlan("cpu", 2, 0 if supervised else 1, 1, not supervised, False, False, "gloo"),
        run_dir=run_dir,
        checkpoint=Path("models/tiny"),
    )


def history() -> History:
    made = History(rollouts=120, seconds={"start": 10.0, "rollout": 60.0, "train": 25.0, "publish": 0.0})
    for i in range(120):
        made.add({"rollout/raw_reward": 0.3 + i / 200}, i)
    for step, (a, b) in {0: (0.25, 0.5), 60: (0.5, 0.625), 120: (0.75, 0.875)}.items():
        made.add({"eval/sampled": a, "eval/greedy": b, "eval/greedy-truncated_ratio": 0.0}, step)
    return made


def test_it_says_what_ran_how_long_what_was_learned_and_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "logs").mkdir()
    write_summary(plan(tmp_path), history(), CheckpointOptions(save="states", save_hf="final"), 100.0)
    text = (tmp_path / "summary.txt").read_text(encoding="utf-8")
    assert capsys.readouterr().out == "\n" + text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "Finished 120 rollouts in 1 min 40 s"
    assert "algorithm grpo + policy_loss, reward exact" in lines
    assert "processes fsdp on 2 cpu ranks; 1 x transformers, colocated" in lines
    assert "batch 64 prompts x 8 samples, 2 optimizer steps of 256" in lines
    times = [line for line in lines if "%" in line]
    assert times[0].startswith("time generation 1 min 0 s 60 % █")
    assert [line.split(" ")[0] for line in times[1:]] == ["training", "start-up", "other"]
    assert "reward 0.300 (rollout 0) -> 0.895 (rollout 119), mean of the last 10: 0.872" in lines
    assert "evaluation before after change (after 0 and 120 rollouts)" in lines
    assert "sampled 0.250 0.750 +0.500" in lines
    assert "greedy 0.500 0.875 +0.375" in lines
    assert not any("truncated" in line for line in lines)
    assert f"{tmp_path}/metrics.jsonl every metric" in lines
    assert lines[-1] == f"as a page: miles report {tmp_path}"
    assert "states run states; go on with --load" in lines
    assert "final the model, in Hugging Face format" in lines
    assert not any("plugins.lock.json" in line for line in lines), "files that are not there are not named"
    assert max(map(len, text.splitlines())) < 150


def test_a_supervised_run_has_neither_reward_nor_engine(tmp_path: Path) -> None:
    text = summary(plan(tmp_path, supervised=True), History(rollouts=1, seconds={"train": 1.0}), CheckpointOptions(), 2.0)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "algorithm sft_loss" in lines
    assert "processes fsdp on 2 cpu ranks" in lines
    assert "batch 64 prompts, 1 optimizer step of 64" in lines
    assert not any(line.startswith(("reward", "evaluation")) for line in lines)


def test_a_run_that_only_evaluated(tmp_path: Path) -> None:
    made = History(rollouts=0, seconds={"evaluate": 1.0})
    made.add({"eval/sampled": 0.25, "eval/greedy": 0.5}, 0)
    text = summary(plan(tmp_path), made, CheckpointOptions(), 2.0)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "evaluation sampled 0.250" in lines
    assert "greedy 0.500" in lines
    assert "change" not in text
