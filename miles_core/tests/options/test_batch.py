"""Batch arithmetic, with the numbers and the nearest legal ones in every error."""

from __future__ import annotations

import pytest

from miles_core.config import DataOptions
from miles_core.options import Source


def test_one_step_per_rollout_when_nothing_is_said(cli) -> None:
    planned = cli.plan(cli.valid)
    assert not planned.errors
    batch = planned.plan.batch
    assert (batch.global_batch_size, batch.steps_per_rollout, batch.num_rollout, batch.train_steps) == (8, 1, 3, 3)
    data = planned.config.value(DataOptions, "global_batch_size")
    assert (data.value, data.source) == (8, Source.DERIVED)
    assert planned.config.peek(DataOptions).num_steps_per_rollout == 1


@pytest.mark.parametrize(
    ("changes", "size", "steps"),
    [
        (["--num-steps-per-rollout 2"], 4, 2),
        (["--global-batch-size 2"], 2, 4),
        (["--global-batch-size 4", "--num-steps-per-rollout 2"], 4, 2),
        (["--rollout-batch-size 3", "--global-batch-size 6"], 6, 1),
    ],
)
def test_sizes_and_steps(cli, changes: list[str], size: int, steps: int) -> None:
    batch = cli.plan(cli.but(*changes)).plan.batch
    assert (batch.global_batch_size, batch.steps_per_rollout) == (size, steps)


@pytest.mark.parametrize(
    ("changes", "code", "parts"),
    [
        (
            ["--global-batch-size 3"],
            "M210",
            ["size 3 (argument", "4 x --n-samples-per-prompt 2 = 8", "2 or 4", "multiple of 3"],
        ),
        (["--global-batch-size 16"], "M210", ["take 8 for", "multiple of 8"]),
        (["--num-steps-per-rollout 3"], "M210", ["--num-steps-per-rollout 3", "8 samples", "2 or 4"]),
        (["--num-steps-per-rollout 2", "--global-batch-size 8"], "M210", ["contradicts", "2 steps of 4", "--global-batch-size 4"]),
        (["--actor-num-gpus-per-node 3"], "M211", ["8 % 3 = 2", "2 or 4"]),
        (["--global-batch-size 1"], "M211", ["1 % 2 = 1", "2 or 4 for --global-batch-size"]),
        (["--actor-num-gpus-per-node 3", "--context-parallel-size 2"], "M211", ["no multiple of 2"]),
        (["--rollout-batch-size 0"], "M209", ["--rollout-batch-size 0", "1 or more"]),
        (["--n-samples-per-prompt -1"], "M209", ["--n-samples-per-prompt -1"]),
        (["--num-rollout 0"], "M209", ["--num-rollout 0", "only evaluate"]),
        (["--use-dynamic-batch-size"], "M213", ["--max-tokens-per-gpu"]),
        (["--use-dynamic-batch-size", "--max-tokens-per-gpu 99", "--qkv-format bshd"], "M214", ["--qkv-format bshd", "thd"]),
    ],
)
def test_arithmetic_that_does_not_work(cli, changes: list[str], code: str, parts: list[str]) -> None:
    (line,) = cli.errors(cli.but(*changes))
    assert line.startswith(code)
    for part in parts:
        assert part in line


def test_context_parallel_ranks_share_rows(cli) -> None:
    assert not cli.errors(cli.but("--actor-num-gpus-per-node 4", "--context-parallel-size 2", "--global-batch-size 2"))


@pytest.mark.parametrize(("missing", "part"), [("--num-rollout", "--num-epoch"), ("--rollout-batch-size", "prompts")])
def test_required(cli, missing: str, part: str) -> None:
    (line,) = cli.errors(cli.but(drop=[missing]))
    assert line.startswith(f"M208 miles-core 0.1.0: {missing} is missing")
    assert part in line


@pytest.mark.parametrize(("epochs", "prompts", "rollouts"), [(2, 4, 5), (1, 4, 2), (1, 10, 1)])
def test_epochs(cli, epochs: int, prompts: int, rollouts: int) -> None:
    planned = cli.plan(cli.but(f"--num-epoch {epochs}", f"--rollout-batch-size {prompts}", drop=["--num-rollout"]))
    assert planned.plan.batch.num_rollout == rollouts
    assert planned.config.value(DataOptions, "num_rollout").source is Source.DERIVED
    assert planned.plan.batch.rollouts_per_epoch == 10 // prompts


def test_epochs_count_the_slice_and_lose_against_rollouts(cli) -> None:
    arguments = cli.but(f"--prompt-data {cli.prompts}@[2:8]", "--num-epoch 2", drop=["--num-rollout"])
    assert cli.plan(arguments).plan.batch.num_rollout == 3
    both = cli.plan(cli.but("--num-epoch 2"))
    assert both.plan.batch.num_rollout == 3
    assert any("--num-epoch 2" in line and "is not used" in line for line in both.warnings)


def test_epochs_that_make_no_rollout(cli) -> None:
    (line,) = cli.errors(cli.but("--num-epoch 1", "--rollout-batch-size 30", drop=["--num-rollout"]))
    assert line.startswith("M212")
    assert "1 x 10 prompts" in line
    assert "--num-epoch 3" in line


def test_a_run_that_only_evaluates(cli, write_rows) -> None:
    rows = write_rows({"input": "q", "label": "a"}, name="eval.jsonl")
    planned = cli.plan([*cli.but("--num-rollout 0", "--eval-interval 1"), "--eval-prompt-data", "held", str(rows)])
    assert planned.plan.batch.num_rollout == 0
    assert planned.eval_rows == {"held": 1}


def test_supervised_runs_take_one_sample_a_prompt(cli) -> None:
    planned = cli.plan(cli.but("--loss-type imitate", "--n-samples-per-prompt 2"))
    assert not planned.errors
    assert planned.plan.batch.n_samples == 1
    assert planned.plan.batch.global_batch_size == 4
    assert any("--n-samples-per-prompt 2" in line for line in planned.warnings)
    quiet = cli.plan(cli.but("--loss-type imitate", drop=["--n-samples-per-prompt"]))
    assert not any("n-samples" in line for line in quiet.warnings)
