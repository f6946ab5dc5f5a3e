"""What miles-loggers offers, and the checks of its options. Standard library and miles_core only."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from miles_core.config import LoggingOptions, PluginOptions
from miles_core.config.logging import logger_names
from miles_core.errors import UsageError
from miles_core.plugins import LoggerRecord, hookimpl
from miles_core.plugins.events import Configure
from miles_loggers.mode import wandb_mode
from miles_loggers.options import TensorboardOptions, WandbOptions

OWNER = "miles-loggers"
_SEPARATORS = ("/", "\\", "\0")


@hookimpl
def miles_logger() -> Sequence[LoggerRecord]:
    return [
        LoggerRecord(
            "tensorboard", "miles_loggers.tensorboard:TensorboardLogger", TensorboardOptions, "Event files for TensorBoard"
        ),
        LoggerRecord("wandb", "miles_loggers.wandb:WandbLogger", WandbOptions, "Weights & Biases, online or as files"),
    ]


@hookimpl
def miles_configure(event: Configure) -> None:
    """Report a library that is missing, and options that cannot be used."""
    config = event.config
    names = {name.rpartition(":")[2] for name in logger_names(config.get(PluginOptions).logger, config.get(LoggingOptions))}
    if "wandb" in names and wandb_mode(config.get(WandbOptions)) != "disabled":
        _require(event, "wandb")
    if "tensorboard" in names:
        _require(event, "tensorboard")
        options = config.get(TensorboardOptions)
        for flag, value in (("--tb-project-name", options.tb_project_name), ("--tb-experiment-name", options.tb_experiment_name)):
            if value is not None and not _is_name(value):
                why = "it names a folder in another one"
                event.error(
                    UsageError(
                        "M309", f"{flag} {value!r} is no name", owner=OWNER, why=why, fix="leave out separators and leading dots"
                    )
                )


def _require(event: Configure, library: str) -> None:
    if importlib.util.find_spec(library) is None:
        why = f"the library {library} is not installed"
        fix = f"pip install 'miles-loggers[{library}]'"
        event.error(UsageError("M300", f"cannot log to {library}", owner=OWNER, why=why, fix=fix, library=library))


def _is_name(value: str) -> bool:
    return bool(value) and not value.startswith(".") and not any(each in value for each in _SEPARATORS)
