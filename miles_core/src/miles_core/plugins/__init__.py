"""Finding, loading and checking plugins. Names load on first use, so that importing this package stays cheap."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miles_core.plugins import events
    from miles_core.plugins.adhoc import load_adhoc, load_function
    from miles_core.plugins.factory import create
    from miles_core.plugins.flags import check_flags
    from miles_core.plugins.hookspecs import hookimpl
    from miles_core.plugins.host import LoadedPlugin, PluginHost
    from miles_core.plugins.index import KINDS, Entry, PluginIndex
    from miles_core.plugins.records import (
        AdvantageRecord,
        AlgorithmRecord,
        BackendRecord,
        CommandRecord,
        EngineRecord,
        FilterRecord,
        LoggerRecord,
        LossRecord,
        MiddlewareRecord,
        Record,
        RewardRecord,
    )
    from miles_core.plugins.refs import PluginRef

__all__ = [
    "KINDS",
    "AdvantageRecord",
    "AlgorithmRecord",
    "BackendRecord",
    "CommandRecord",
    "EngineRecord",
    "Entry",
    "FilterRecord",
    "LoadedPlugin",
    "LoggerRecord",
    "LossRecord",
    "MiddlewareRecord",
    "PluginHost",
    "PluginIndex",
    "PluginRef",
    "Record",
    "RewardRecord",
    "check_flags",
    "create",
    "events",
    "hookimpl",
    "load_adhoc",
    "load_function",
]

_HOME = {
    "KINDS": "index",
    "Entry": "index",
    "LoadedPlugin": "host",
    "PluginHost": "host",
    "PluginIndex": "index",
    "PluginRef": "refs",
    "check_flags": "flags",
    "create": "factory",
    "hookimpl": "hookspecs",
    "load_adhoc": "adhoc",
    "load_function": "adhoc",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "events":
        return importlib.import_module(f"{__name__}.events")
    home = _HOME.get(name, "records")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
