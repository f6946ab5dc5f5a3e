"""YAML files, environment variables and recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_core.config import ClusterOptions, DataOptions, PluginOptions, RolloutOptions, TrainingOptions
from miles_core.options import Source


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_sets_options_with_its_lines_as_places(cli, tmp_path: Path) -> None:
    text = """\
# comment
lr: 1e-5
num_rollout: 1_000
rollout-stop: ["</answer>", "no"]
rollout-stop-token-ids: 7
rollout-shuffle: on
no-such: 1
label-key: 007
apply-chat-template-kwargs: {enable_thinking: false, nested: {a: [1, 2.5]}}
offload-train: null
"""
    path = write(tmp_path, text)
    resolved = cli.resolve([*cli.plugins, "--config", path])
    config = resolved.config
    assert config.peek(TrainingOptions).lr == 1e-5
    assert config.value(TrainingOptions, "lr").place == f"{path}:2"
    assert config.value(TrainingOptions, "lr").source is Source.FILE
    assert config.peek(RolloutOptions).rollout_stop == ["</answer>", "no"]
    assert config.peek(RolloutOptions).rollout_stop_token_ids == [7]
    assert config.peek(RolloutOptions).rollout_shuffle is True
    data = config.peek(DataOptions)
    assert (data.num_rollout, data.label_key) == (1000, "007")
    assert data.apply_chat_template_kwargs == {"enable_thinking": False, "nested": {"a": [1, 2.5]}}
    assert config.peek(ClusterOptions).offload_train is None
    (line,) = [error.line() for error in resolved.errors]
    assert line.startswith(f"M206 {path}:7")


@pytest.mark.parametrize(
    ("text", "code", "parts"),
    [
        ("lr: 1\nlr: 2\n", "M204", [":2", ":1"]),
        ("num-rollout: 1\nnum_rollout: 2\n", "M204", ["num-rollout at", "num_rollout at"]),
        ("backend: toy\ntrain-backend: toy\n", "M204", ["--train-backend"]),
        ("lr: fast\n", "M203", [":1", "--lr", "a number"]),
        ("lr: [1]\n", "M203", ["one value"]),
        ("lr: null\n", "M203", ["a number"]),
        ("num-rolout: 4\n", "M206", [":1", "did you mean num-rollout?"]),
        ("lr: 1\n  seed: 2\n", "M205", [":2"]),
        ("- lr\n", "M205", ["not a mapping"]),
        ("lr: 1\n---\nseed: 2\n", "M205", ["one option a line", "not YAML"]),
    ],
)
def test_mistakes_in_a_file(cli, tmp_path: Path, text: str, code: str, parts: list[str]) -> None:
    arguments = [a for a in cli.plugins if a not in ("--backend", "toy", "--engine")] if "backend" in text else cli.plugins
    lines = [e.line() for e in cli.resolve([*arguments, "--config", write(tmp_path, text)]).errors if e.code == code]
    assert len(lines) == 1
    assert any(part in lines[0] for part in parts) if code == "M205" else all(part in lines[0] for part in parts)


def test_a_missing_file_is_one_error(cli, tmp_path: Path) -> None:
    (line,) = [e.line() for e in cli.resolve([*cli.plugins, "--config", str(tmp_path / "none.yaml")]).errors]
    assert line.startswith("M205")
    assert "no such file" in line


def test_an_empty_file_sets_nothing(cli, tmp_path: Path) -> None:
    assert not cli.resolve([*cli.plugins, "--config", write(tmp_path, "# nothing\n")]).errors


def test_environment(cli) -> None:
    resolved = cli.resolve(
        [*cli.plugins, "--backend=toy"][2:],
        MILES_LR="2e-5",
        MILES_ROLLOUT_STOP_TOKEN_IDS="1, 2 3",
        MILES_ROLLOUT_STOP='["a b", "c"]',
        MILES_COLOCATE="1",
        MILES_NUM_ROLLOUT="",
        MILES_HOST_IP="10.0.0.1",
        MILES_TEST_DATA="/data",
        MILES_UNRELATED_THING="x",
        MILES_NUM_ROLOUT="4",
        HOME="/root",
    )
    assert not resolved.errors
    config = resolved.config
    assert config.value(TrainingOptions, "lr") == type(config.value(TrainingOptions, "lr"))(2e-5, Source.ENVIRONMENT, "MILES_LR")
    assert config.peek(RolloutOptions).rollout_stop_token_ids == [1, 2, 3]
    assert config.peek(RolloutOptions).rollout_stop == ["a b", "c"]
    assert config.peek(ClusterOptions).colocate is True
    assert config.peek(DataOptions).num_rollout is None
    (warning,) = resolved.warnings
    assert "MILES_NUM_ROLOUT" in warning
    assert "did you mean MILES_NUM_ROLLOUT?" in warning


@pytest.mark.parametrize(
    ("environment", "code", "part"),
    [
        ({"MILES_LR": "fast"}, "M203", "MILES_LR"),
        ({"MILES_COLOCATE": "maybe"}, "M203", "true or false"),
        ({"MILES_ROLLOUT_STOP": "[1"}, "M203", "JSON list"),
        ({"MILES_BACKEND": "toy", "MILES_TRAIN_BACKEND": "toy"}, "M204", "MILES_BACKEND and"),
    ],
)
def test_mistakes_in_the_environment(cli, environment: dict[str, str], code: str, part: str) -> None:
    (error,) = cli.resolve(cli.plugins, **environment).errors
    assert error.code == code
    assert part in error.line()


def test_secrets_of_the_environment_are_in_no_message(cli) -> None:
    (error,) = cli.resolve(cli.plugins, MILES_TOY_PIN="hunter2").errors
    assert error.code == "M203"
    assert "hunter2" not in error.line()


def test_the_config_file_may_come_from_the_environment(cli, tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 5\n")
    assert cli.resolve(cli.plugins, MILES_CONFIG=path).config.peek(TrainingOptions).seed == 5


STEPS = [
    (Source.DEFAULT, 1e-6),
    (Source.RECIPE, 3e-5),
    (Source.FILE, 0.1),
    (Source.ENVIRONMENT, 0.2),
    (Source.COMMAND_LINE, 0.3),
]


@pytest.mark.parametrize(("highest", "expected"), STEPS)
def test_precedence_of_every_step(cli, tmp_path: Path, highest: Source, expected: float) -> None:
    arguments, environment = [*cli.plugins], {}
    if highest >= Source.RECIPE:
        arguments += ["--algo", "recipe"]
    if highest >= Source.FILE:
        arguments += ["--config", write(tmp_path, "lr: 0.1\n")]
    if highest >= Source.ENVIRONMENT:
        environment["MILES_LR"] = "0.2"
    if highest >= Source.COMMAND_LINE:
        arguments += ["--lr", "0.3"]
    resolved = cli.resolve(arguments, **environment)
    assert not resolved.errors
    value = resolved.config.value(TrainingOptions, "lr")
    assert (value.value, value.source) == (expected, highest)


def test_selectors_come_from_every_source(cli, tmp_path: Path) -> None:
    path = write(tmp_path, "backend: gpu-only\nengine: toy\nloss-type: clip\nlogger: [quiet]\n")
    resolved = cli.resolve(["--config", path, "--rm-type", "exact"], MILES_TRAIN_BACKEND="toy", MILES_ALGO="recipe")
    assert not resolved.errors
    assert resolved.selection.backend.name == "toy"
    assert resolved.config.peek(PluginOptions).advantage_estimator == "mean"


def test_a_recipe_with_impossible_defaults_is_named(cli) -> None:
    lines = [e.line() for e in cli.resolve([*cli.plugins, "--algo", "sloppy"]).errors]
    assert [line[:4] for line in lines] == ["M207", "M207"]
    assert "toy 1.0" in lines[0]
    assert "'lrr'" in lines[0]
    assert "did it mean 'lr'?" in lines[0]
    assert "an integer" in lines[1]
