"""Halves of a run, paths of saved data, profiles and memory records: what validation says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from miles_core.cli.dry_run import describe
from miles_core.config import ClusterOptions, DebugOptions, EvaluationOptions
from miles_core.debug.rollout_file import write_rollout

EVALUATION = ("--eval-interval 1", "--eval-max-response-len 4")


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """Three saved rollouts."""
    for rollout_id in range(3):
        write_rollout(tmp_path / f"{rollout_id}.npz", rollout_id, [])
    return str(tmp_path / "{rollout_id}.npz")


def test_saved_rollouts_take_no_engine_reward_or_prompts(cli, saved: str) -> None:
    planned = cli.plan(cli.but(f"--load-debug-rollout-data {saved}", drop=["--prompt-data", "--rm-type"]))
    plan = planned.require()
    assert (plan.plugins.engine, plan.plugins.reward, plan.placement.engines) == (None, None, 0)
    assert plan.placement.trainers == 2
    assert not plan.placement.colocate
    assert not plan.placement.offload_train
    assert planned.config.peek(DebugOptions).debug_train_only
    assert f"saved rollouts: {saved}" in describe(planned)


def test_a_missing_rollout_and_a_missing_number(cli, saved: str) -> None:
    assert "M372" in cli.errors(cli.but(f"--load-debug-rollout-data {saved}", "--num-rollout 5"))[0]
    errors = cli.errors(cli.but(f"--load-debug-rollout-data {saved}", "--num-epoch 1", drop=["--num-rollout"]))
    assert [error[:4] for error in errors] == ["M208"]


def test_saved_rollouts_leave_out_evaluation(cli, saved: str, tmp_path: Path) -> None:
    planned = cli.plan(
        cli.but(f"--load-debug-rollout-data {saved}", *EVALUATION, f"--eval-prompt-data held {tmp_path / 'none.jsonl'}")
    )
    assert planned.require()
    assert planned.config.peek(EvaluationOptions).eval_interval is None
    assert any(line.startswith("--eval-interval 1 ") and "leaves out the engines" in line for line in planned.warnings)


def test_training_only_needs_data(cli) -> None:
    errors = cli.errors(cli.but("--debug-train-only"))
    assert len(errors) == 1
    assert errors[0].startswith("M375")
    assert "--load-debug-rollout-data" in errors[0]


def test_rollouts_only_take_no_trainers(cli, tmp_path: Path) -> None:
    planned = cli.plan(cli.but("--debug-rollout-only", f"--save {tmp_path / 'state'}", "--actor-num-gpus-per-node 3"))
    placement = planned.require().placement
    assert (placement.trainers, placement.engines, placement.devices, placement.colocate) == (0, 3, 3, False)
    assert any("--save" in line and "no effect" in line for line in planned.warnings)
    assert "training rank" not in describe(planned)
    own = cli.plan(cli.but("--debug-rollout-only", "--rollout-num-gpus 2", drop=["--colocate"])).require().placement
    assert (own.trainers, own.engines) == (0, 2)


def test_rollouts_only_without_a_critic(cli) -> None:
    placement = (
        cli.plan(cli.but("--debug-rollout-only", "--advantage-estimator valued", "--critic-loss-type regress")).require().placement
    )
    assert (placement.trainers, placement.critics) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (("--debug-rollout-only", "--debug-train-only"), "M370"),
        (("--debug-rollout-only", "--loss-type imitate"), "M370"),
        (("--save-debug-rollout-data out.npz",), "M371"),
        (("--save-debug-rollout-data out/{}.npz",), "M371"),
        (("--save-debug-rollout-data out/{rollout_id}-{rank}.npz",), "M371"),
        (("--save-debug-rollout-data out/{rollout_id",), "M371"),
        (("--save-debug-train-data out/{rollout_id}.npz",), "M371"),
        (("--load-debug-rollout-data out/{number}.npz",), "M371"),
        (("--load-debug-rollout-data-subsample 1.5",), "M209"),
        (("--profile-target train_overall train_actor",), "M373"),
        (("--use-pytorch-profiler", "--profile-step-start 4", "--profile-step-end 4"), "M373"),
        (("--memory-snapshot-dir out", "--memory-snapshot-num-steps 0"), "M209"),
    ],
)
def test_mistakes(cli, changes: tuple[str, ...], code: str) -> None:
    words = [part for word in cli.but(*changes) for part in word.split(" ")]
    assert code in [error[:4] for error in cli.errors(words)]


def test_dump_details_names_the_files(cli, tmp_path: Path) -> None:
    folder = tmp_path / "a{b}"
    options = cli.plan(cli.but(f"--dump-details {folder}")).config.peek(DebugOptions)
    assert options.save_debug_rollout_data is not None
    assert options.save_debug_train_data is not None
    assert options.save_debug_rollout_data.format(rollout_id=3) == f"{folder}/rollout_data/3.npz"
    assert options.save_debug_train_data.format(rollout_id=3, rank=1) == f"{folder}/train_data/3_1.npz"
    kept = cli.plan(cli.but(f"--dump-details {folder}", "--save-debug-rollout-data own/{rollout_id}")).config.peek(DebugOptions)
    assert kept.save_debug_rollout_data == "own/{rollout_id}"


@pytest.mark.parametrize("change", ["--memory-snapshot-dir out", "--memory-recorder torch"])
def test_a_memory_option_switches_recording_on(cli, change: str) -> None:
    planned = cli.plan(cli.but(change))
    assert planned.config.peek(DebugOptions).record_memory_history
    assert any("records nothing on the CPU" in line and "memray" in line for line in planned.warnings)


def test_a_profile_target_switches_the_profiler_on(cli) -> None:
    planned = cli.plan(cli.but("--profile-target train_actor"))
    assert planned.config.peek(DebugOptions).use_pytorch_profiler
    assert any("nothing is profiled" in line for line in planned.warnings), "three rollouts end before the tenth"
    assert not cli.plan(cli.but()).config.peek(DebugOptions).use_pytorch_profiler


def test_options_of_what_is_off_have_no_effect(cli) -> None:
    planned = cli.plan(
        cli.but("--profile-step-start 1", "--memory-snapshot-num-steps 2", "--load-debug-rollout-data-subsample 0.5")
    )
    said = [line for line in planned.warnings if "no effect" in line]
    assert len(said) == 3


def test_memray_that_is_not_there(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "memray" else find(name, *rest))
    errors = cli.errors(cli.but("--memory-recorder memray"))
    assert len(errors) == 1
    assert errors[0].startswith("M374")
    assert "pip install memray" in errors[0]


def test_nothing_changes_without_the_options(cli) -> None:
    planned = cli.plan(cli.valid)
    assert planned.require().placement.trainers == 2
    assert planned.config.peek(ClusterOptions).colocate
