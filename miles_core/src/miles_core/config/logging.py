"""Metrics: loggers that go by a switch, and metrics that are off by default."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option

SWITCHES = {"wandb": "use_wandb", "tensorboard": "use_tensorboard"}
"""Loggers of the package miles-loggers by the field of their switch: ``--use-wandb`` is ``--logger ... wandb``."""


@dataclass(frozen=True)
class LoggingOptions:
    """Logging"""

    use_wandb: bool = option(False, flag="--use-wandb", help="Log to Weights & Biases too: adds wandb to --logger.")
    use_tensorboard: bool = option(False, flag="--use-tensorboard", help="Log to TensorBoard too: adds tensorboard to --logger.")
    log_multi_turn: bool = option(
        False,
        flag="--log-multi-turn",
        help="Log lengths of responses with and without the tokens that nobody generated, and rounds, as multi_turn/.",
    )
    log_passrate: bool = option(
        False, flag="--log-passrate", help="Log pass@k for k = 1, 2, 4, ... as passrate/, and of every evaluation set."
    )
    log_correct_samples: bool = option(
        False, flag="--log-correct-samples", help="Log quartiles of the length, and the entropy, of correct responses."
    )
    log_correct_threshold: float | None = option(
        None,
        flag="--log-correct-threshold",
        help="A response is correct from this reward on; when not given, when its reward is exactly 1.",
    )
    log_reward_category: str | None = option(
        None,
        flag="--log-reward-category",
        metavar="KEY",
        help="Log the share of samples by what their reward's dict has under this key, as error_cat/.",
    )


def logger_names(named: list[str], switches: LoggingOptions) -> list[str]:
    """The loggers of a run: those that ``--logger`` names, then those that were switched on, each once."""
    switched = [name for name, field in SWITCHES.items() if getattr(switches, field)]
    return list(dict.fromkeys([*named, *switched]))
