"""The loggers that come with core, offered as everybody's are."""

from __future__ import annotations

from collections.abc import Sequence

from miles_core.plugins.hookspecs import hookimpl
from miles_core.plugins.records import LoggerRecord


@hookimpl
def miles_logger() -> Sequence[LoggerRecord]:
    return [
        LoggerRecord(
            name="console",
            create="miles_core.loggers.console:ConsoleLogger",
            summary="One line per rollout and per evaluation on standard output",
        ),
        LoggerRecord(
            name="jsonl",
            create="miles_core.loggers.jsonl:JsonlLogger",
            summary="Every metric, as metrics.jsonl in the run folder",
        ),
    ]
