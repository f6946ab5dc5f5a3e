"""The switches of loggers, and metrics that are off by default."""

from __future__ import annotations

import pytest

from miles_core.config import LoggingOptions
from miles_core.config.logging import logger_names


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_switch_without_the_package_says_what_to_install(cli, name: str) -> None:
    for arguments in (cli.but(f"--use-{name}"), cli.but(f"--logger {name}")):
        (line,) = cli.errors(arguments)
        assert line == (
            f"M101 there is no logger '{name}': miles-loggers is not installed. Do: pip install 'miles-loggers[{name}]'"
        )


def test_loggers_that_are_named_and_switched_on_come_once() -> None:
    assert logger_names(["console"], LoggingOptions()) == ["console"]
    assert logger_names(["console"], LoggingOptions(use_tensorboard=True, use_wandb=True)) == ["console", "wandb", "tensorboard"]
    assert logger_names(["wandb", "console"], LoggingOptions(use_wandb=True)) == ["wandb", "console"]


def test_a_threshold_that_nothing_asks_about_has_no_effect(cli) -> None:
    def warned(*changes: str) -> bool:
        return any(
            "--log-correct-threshold" in line for line in cli.plan(cli.but("--log-correct-threshold 0.5", *changes)).warnings
        )

    assert warned()
    assert not warned("--log-passrate")
    assert not warned("--log-correct-samples")


def test_metrics_of_rollouts_have_no_effect_on_supervised_runs(cli) -> None:
    found = cli.plan(cli.but("--loss-type imitate", "--log-multi-turn", "--log-correct-samples", "--log-passrate"))
    for flag in ("--log-multi-turn", "--log-correct-samples", "--log-passrate"):
        assert any(line.startswith(flag) and "has no effect" in line for line in found.warnings)
