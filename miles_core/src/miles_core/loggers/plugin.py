"""What core offers as a plugin: the loggers that need nothing installed, found and loaded like everybody's."""

from __future__ import annotations

from collections.abc import Sequence

from miles_core.plugins import LoggerRecord, hookimpl


@hookimpl
def miles_logger() -> Sequence[LoggerRecord]:
    """The loggers ``console`` and ``jsonl``."""
    return [
        LoggerRecord(
            "console", "miles_core.loggers.console:ConsoleLogger", summary="Every step's figures as a line on the terminal"
        ),
        LoggerRecord(
            "jsonl", "miles_core.loggers.jsonl:JsonlLogger", summary="Every metric, one JSON object a step, in metrics.jsonl"
        ),
    ]
