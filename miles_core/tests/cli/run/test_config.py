"""``miles config show``."""

from __future__ import annotations

import json
from pathlib import Path


def row(text: str, option: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [option]]
    return line.split()


def test_origin_of_every_value(miles, arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("# options\nlr: 1e-4\n", encoding="utf-8")
    text = miles("config", "show", "--origin", *arguments, "--config", str(config), MILES_SEED="5").stdout
    assert row(text, "OPTION") == ["OPTION", "VALUE", "SOURCE", "PLACE", "OWNER"]
    assert row(text, "lr") == ["lr", "0.0001", "file", f"{config}:2", "core"]
    assert row(text, "seed") == ["seed", "5", "environment", "MILES_SEED", "core"]
    assert row(text, "loss-type") == ["loss-type", '"policy_loss"', "recipe", "--algo", "grpo", "core"]
    assert row(text, "rollout-batch-size") == ["rollout-batch-size", "4", "command", "line", "argument", "17", "core"]
    assert row(text, "global-batch-size")[:3] == ["global-batch-size", "8", "derived"]
    assert row(text, "eps-clip") == ["eps-clip", "0.2", "default", "policy_loss", "(miles-algos", "0.1.0)"]


def test_plain_and_json(miles, arguments: list[str]) -> None:
    lines = miles("config", "show", *arguments).stdout.splitlines()
    assert "rollout-batch-size: 4" in lines
    values = json.loads(miles("config", "show", "--json", *arguments).stdout)
    assert values["rollout-batch-size"]["value"] == 4
    assert values["rollout-batch-size"]["source"] == "command_line"
    assert values["num-rollout"] == {"value": 8, "source": "derived", "place": "derived", "owner": "core"}


def test_flags_of_the_command_may_stand_behind_the_arguments(miles, arguments: list[str]) -> None:
    assert json.loads(miles("config", "show", *arguments, "--json").stdout)


def test_secrets_are_masked(miles, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "keyed-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: keyed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[miles.logger]\nkeyed = keyed_plugin\n")
    (site / "keyed_plugin.py").write_text(
        "from dataclasses import dataclass\n"
        "from miles_core.options import option\n"
        "from miles_core.plugins import LoggerRecord, hookimpl\n"
        "@dataclass(frozen=True)\n"
        "class Keys:\n"
        "    '''Keys'''\n"
        "    key: str | None = option(None, secret=True, help='A key.')\n"
        "    spare: str | None = option(None, secret=True, help='Another.')\n"
        "@hookimpl\n"
        "def miles_logger():\n"
        "    return [LoggerRecord('keyed', 'keyed_work:make', options=Keys)]\n"
    )
    words = ["--backend", "fsdp", "--engine", "transformers", "--logger", "keyed", "--keyed-key", "hunter2"]
    for form in ([], ["--origin"], ["--json"]):
        done = miles("config", "show", *form, *words, PYTHONPATH=str(site))
        assert "hunter2" not in done.stdout + done.stderr
        assert "***" in done.stdout
        assert done.stdout.count("***") == 1


def test_mistakes_are_errors(miles, arguments: list[str]) -> None:
    done = miles("config", "show", *arguments, "--lrr", "1", code=2)
    assert done.stderr.startswith("M201")
