"""Numbers out of range, partners that are missing, options without effect, and the plugins' own checks."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from miles_core.config import CORE_GROUPS
from miles_core.options import options_of
from miles_core.runtime.checks.ranges import RANGES


@pytest.mark.parametrize(
    "change",
    [
        *("--rollout-temperature 0", "--rollout-temperature -1", "--rollout-temperature inf"),
        *("--rollout-top-p 0", "--rollout-top-p 1.1", "--rollout-top-k 0", "--rollout-top-k -2"),
        *("--rollout-max-response-len 0", "--lr -1", "--adam-beta1 1", "--reward-failure-limit 2", "--micro-batch-size 0"),
        *("--log-probs-chunk-size 0", "--distributed-timeout-minutes 0", "--reward-workers 0", "--max-skipped-rollouts 0"),
        *("--rollout-request-timeout 0", "--lr-warmup-fraction 1.5", "--clip-grad -1"),
    ],
)
def test_out_of_range(cli, change: str) -> None:
    lines = cli.errors(cli.but(change))
    assert len(lines) == 1
    assert lines[0].startswith("M209")
    assert change.split()[0] in lines[0]
    assert "(argument" in lines[0]


@pytest.mark.parametrize(
    "change", ["--rollout-top-k -1", "--rollout-top-k 5", "--log-probs-chunk-size -1", "--lr 0", "--clip-grad 0"]
)
def test_in_range(cli, change: str) -> None:
    assert not cli.errors(cli.but(change))


def test_greedy_is_for_evaluation_only(cli, write_rows) -> None:
    rows = write_rows({"input": "q", "label": "a"})
    arguments = [*cli.but("--eval-interval 1", "--eval-temperature 0"), "--eval-prompt-data", "a", str(rows)]
    assert not cli.errors(arguments)
    assert not cli.errors(cli.but("--loss-type imitate", "--rollout-temperature 0"))


def test_every_range_is_of_an_option_with_numbers() -> None:
    for group, fields in RANGES.items():
        assert group in CORE_GROUPS
        kinds = {option.field: option.kind for option in options_of(group, "core")}
        assert all(kinds[name] in (int, float) for name in fields)
        defaults = group()
        for name, (legal, _) in fields.items():
            value = getattr(defaults, name)
            assert value is None or legal(value), name
    assert typing.get_type_hints(CORE_GROUPS[0])


@pytest.mark.parametrize(
    ("change", "drop", "code", "part"),
    [
        ("--save-interval 2", (), "M215", "--save DIR"),
        ("--logprob-diff-limit 0.01", (), "M209", "--logprob-diff-warn"),
        ("--colocate", ("--rm-type",), "M208", "--custom-rm-path"),
    ],
)
def test_partners(cli, change: str, drop: tuple[str, ...], code: str, part: str) -> None:
    (line,) = cli.errors(cli.but(change, drop=drop))
    assert line.startswith(code)
    assert part in line


@pytest.mark.parametrize("flag", ["--save", "--save-hf", "--run-dir"])
def test_a_folder_cannot_be_where_a_file_is(cli, flag: str) -> None:
    for path in (cli.prompts, cli.prompts / "below"):
        (line,) = cli.errors(cli.but(f"{flag} {path}"))
        assert line.startswith(f"M223 {cli.prompts}")
        assert flag in line


def test_the_run_folder(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.plan(cli.but("--run-dir out")).plan.run_dir == tmp_path / "out"
    first = cli.plan(cli.valid).plan.run_dir
    assert first.parent == tmp_path / "runs"
    assert not first.exists()
    first.mkdir(parents=True)
    assert cli.plan(cli.valid).plan.run_dir != first


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        (["--loss-type imitate", "--advantage-estimator other"], "--advantage-estimator"),
        (["--loss-type imitate"], "--rm-type"),
        (["--loss-type imitate", "--reward-key k"], "--reward-key"),
        (["--loss-type imitate", "--rollout-temperature 0.5"], "--rollout-temperature"),
        (["--loss-type imitate", "--mean-scale 2"], "--mean-scale"),
        (["--loss-type imitate", "--toy-slots 2"], "--toy-slots"),
        (["--loss-type imitate"], "--colocate"),
        (["--eval-temperature 0.5"], "--eval-temperature"),
        (["--max-tokens-per-gpu 5"], "--max-tokens-per-gpu"),
        (["--use-dynamic-batch-size", "--max-tokens-per-gpu 5", "--micro-batch-size 2"], "--micro-batch-size"),
        (["--lr-warmup-fraction 0.1", "--lr-warmup-iters 5"], "--lr-warmup-iters"),
        (["--min-lr 1e-9"], "--min-lr"),
        (["--save-total-limit 2"], "--save-total-limit"),
    ],
)
def test_options_without_effect_are_named(cli, changes: list[str], flag: str) -> None:
    planned = cli.plan(cli.but(*changes))
    assert not planned.errors
    assert [line for line in planned.warnings if line.startswith(f"{flag} (argument")], planned.warnings


def test_nothing_is_said_about_options_that_count(cli) -> None:
    assert not cli.plan(cli.but("--toy-slots 2", "--mean-scale 2", "--toy-width 1", "--reward-key k")).warnings
    supervised = cli.but(
        "--loss-type imitate", "--toy-width 1", "--lr 1", drop=["--n-samples-per-prompt", "--colocate", "--rm-type"]
    )
    # Engine and estimator are named with a value that says nothing about this run.
    assert all(line.startswith(("--engine", "--advantage-estimator")) for line in cli.plan(supervised).warnings)


def test_plugins_check_the_derived_options_and_all_errors_come_together(cli) -> None:
    lines = cli.errors(cli.but("--weight-decay 13", "--global-batch-size 3", "--hf-checkpoint none", "--wat"))
    assert [line[:4] for line in lines] == ["M201", "M330", "M210", "M299"]
    (line,) = cli.errors(cli.but("--weight-decay 14"))
    assert line.startswith("M106 toy 1.0")


def test_plugins_may_warn(cli) -> None:
    assert cli.plan(cli.but("--weight-decay 12")).warnings == ["toy would not take 12"]


def test_validation_reads_nothing_and_the_plan_reads_what_it_takes(cli) -> None:
    reads = cli.plan(cli.but("--weight-decay 0.1")).config.reads()
    assert {"--train-backend", "--rollout-batch-size", "--colocate", "--hf-checkpoint", "--run-dir"} <= reads
    assert not {"--lr", "--weight-decay", "--prompt-data", "--rollout-temperature", "--save"} & reads
