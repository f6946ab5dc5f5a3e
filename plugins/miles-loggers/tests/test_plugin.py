"""What miles-loggers offers, and what its checks say, by real command lines."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from miles_core.config import LoggingOptions, PluginOptions
from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.options.export import config_yaml
from miles_core.options.resolve import resolve
from miles_core.plugins import events
from miles_loggers import plugin
from miles_loggers.options import TensorboardOptions, WandbOptions


def checked(*options: object) -> list[str]:
    found: list[MilesError] = []
    plugin.miles_configure(events.Configure(Config.of(*options), found.append))
    return [error.line() for error in found]


def test_the_entry_points_are_the_records() -> None:
    points = {point.name for point in entry_points(group="miles.logger") if point.dist.name == "miles-loggers"}
    assert points == {record.name for record in plugin.miles_logger()} == {"tensorboard", "wandb"}


def test_the_light_module_imports_neither_library() -> None:
    bad = {"wandb", "tensorboard", "torch", "ray", "numpy"}
    script = f"import sys, miles_loggers.plugin; found = {bad} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_switches_add_loggers() -> None:
    found = resolve(["--use-wandb", "--use-tensorboard", "--wandb-mode", "offline"], environment={})
    assert [ref.name for ref in found.selection.loggers] == ["console", "jsonl", "wandb", "tensorboard"]
    found = resolve(["--use-wandb", "--logger", "wandb", "console"], environment={})
    assert [ref.name for ref in found.selection.loggers] == ["wandb", "console"]
    assert [ref.name for ref in resolve([], environment={}).selection.loggers] == ["console", "jsonl"]


def test_an_option_of_a_logger_that_is_not_used_is_said_to_be_one() -> None:
    errors = [error.line() for error in resolve(["--backend", "fsdp", "--wandb-project", "p"], environment={}).errors]
    assert any("M201" in line and "--wandb-project" in line and "wandb" in line for line in errors)


def test_a_missing_library_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = checked(LoggingOptions(use_wandb=True))
    assert line.startswith("M300 miles-loggers: cannot log to wandb")
    assert "pip install 'miles-loggers[wandb]'" in line
    (line,) = checked(PluginOptions(logger=["tensorboard"]))
    assert "pip install 'miles-loggers[tensorboard]'" in line
    assert checked(LoggingOptions(use_wandb=True), WandbOptions(wandb_mode="disabled")) == []
    assert checked(PluginOptions(logger=["console"])) == []


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden", "a\\b"])
def test_names_that_leave_their_folder(name: str) -> None:
    (line,) = checked(LoggingOptions(use_tensorboard=True), TensorboardOptions(tb_project_name=name))
    assert line.startswith("M309 miles-loggers: --tb-project-name")
    assert checked(LoggingOptions(use_tensorboard=True), TensorboardOptions(tb_project_name="plain name")) == []


def test_the_key_is_a_secret() -> None:
    found = resolve(["--use-wandb", "--wandb-key", "hidden-key"], environment={})
    text = config_yaml(found.config)
    assert "hidden-key" not in text
    assert "wandb-key: secret, not written" in text
