"""``miles run``: help, dry run, and bad input with exit code 2 and nothing heavy imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_core.cli.help import selected_help
from miles_core.config import CORE_GROUPS
from miles_core.options import options_of
from miles_core.options.resolve import resolve


def test_help_shows_core_and_the_selected_plugins(miles, arguments: list[str]) -> None:
    text = miles("run", *arguments, "--help").stdout
    for title in (
        "This command",
        "Plugins",
        "Training",
        "FSDP backend (backend fsdp, miles-fsdp",
        "Transformers engine (engine transformers",
    ):
        assert title in text
    for group in CORE_GROUPS:
        for option in options_of(group, "core"):
            assert f"{option.flag}" in text
    assert "default 1e-06" in text
    assert "default 0]" in text
    assert "--backend, --train-backend NAME" in text
    assert "--qkv-format thd|bshd" in text
    assert "--offload-train, --no-offload-train" in text


def test_help_needs_no_arguments_and_survives_mistakes(miles) -> None:
    text = miles("run", "--help", "--backend", "nope", "--wat", "--lr").stdout
    assert "--rollout-batch-size" in text
    (line,) = [line for line in text.splitlines() if "M101" in line]
    assert "'nope'" in line


def test_help_fits_the_terminal() -> None:
    resolved = resolve(["--backend", "fsdp"], environment={})
    for width in (80, 120):
        lines = selected_help(resolved, width).split("Plugins that cannot be loaded")[0].splitlines()
        assert max(len(line) for line in lines) <= width


def test_help_all_shows_every_installed_plugin(miles, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "brittle-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brittle\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[miles.reward]\nbrittle = brittle_plugin\n")
    (site / "brittle_plugin.py").write_text("import sys\nsys.exit(3)\n")
    text = miles("run", "--help-all", PYTHONPATH=str(site)).stdout
    (line,) = [line for line in text.splitlines() if "brittle" in line]
    assert "M103 brittle 1.0" in line
    assert "--eps-clip" in text
    assert "--fsdp-precision" in text
    plain = miles("run", "--help", PYTHONPATH=str(site)).stdout
    assert "brittle" not in plain


def test_dry_run_prints_the_plan(miles, arguments: list[str], prompts: Path, tmp_path: Path) -> None:
    text = miles("run", *arguments, "--dry-run").stdout
    for part in (
        *("backend    fsdp", "miles-fsdp 0.1.0", "engine     transformers", "reward     math", "logger     console"),
        *("1 training rank, one CPU worker each, gloo", "1 engine of 1 CPU worker, on the same devices, in turn"),
        *("4 prompts x 2 responses = 8 samples a rollout", "1 optimizer step of 8 samples", "8 rollouts, 8 optimizer steps"),
        *(f"{prompts}: 16 rows", "starts fresh", str(tmp_path / "runs")),
    ):
        assert part in text
    assert not (tmp_path / "runs").exists()


def test_dry_run_prints_warnings_and_mistakes(miles, arguments: list[str]) -> None:
    done = miles("run", *arguments, "--dry-run", "--save-total-limit", "2")
    assert "warning: --save-total-limit (argument" in done.stderr
    done = miles("run", *arguments, "--dry-run", "--global-batch-size", "3", code=2)
    assert done.stderr.startswith("M210")
    assert done.stdout == ""


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_bad_input_ends_with_all_errors_a_line_each(
    miles, arguments: list[str], prompts: Path, tmp_path: Path, dry: list[str]
) -> None:
    prompts.write_text('{"question": "q"}\n{\n', encoding="utf-8")
    config = tmp_path / "run.yaml"
    config.write_text("lr: fast\nrolout-seed: 3\n", encoding="utf-8")
    words = [
        *arguments,
        *dry,
        "--config",
        str(config),
        "--num-rolout",
        "5",
        "--distributed-backend",
        "nccl",
        "--save-interval",
        "1",
    ]
    done = miles("run", *words, code=2, MILES_SEED="x")
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("imported:", "warning:"))]
    assert sorted(line[:4] for line in lines) == ["M201", "M203", "M203", "M206", "M215", "M221", "M303", "M304"]
    assert all(". Do: " in line for line in lines)
    assert any(f"{prompts}:1" in line for line in lines)
    assert any(f"{config}:2" in line and "rollout-seed" in line for line in lines)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_same_command_fine_tunes(miles, arguments: list[str]) -> None:
    done = miles("run", *arguments, "--loss-type", "sft_loss", "--dry-run")
    assert "sft_loss" in done.stdout
    assert "transformers" not in done.stdout.partition("processes")[0]
    assert "--n-samples-per-prompt" in done.stderr


def test_no_arguments_say_what_is_missing(miles) -> None:
    lines = miles("run", code=2).stderr.splitlines()
    missing = {line.split(": ")[1].split(" ")[0] for line in lines if line.startswith("M208")}
    assert {"--hf-checkpoint", "--prompt-data", "--rollout-batch-size", "--num-rollout", "--rm-type"} <= missing
