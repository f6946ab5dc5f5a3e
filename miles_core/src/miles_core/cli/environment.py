"""What the environment says to commands that have no options of a run."""

from __future__ import annotations

import os

from miles_core.config import PluginOptions
from miles_core.options import options_of
from miles_core.options.convert import BadValue, from_environment
from miles_core.options.table import bad_value
from miles_core.plugins import PluginHost


def plugin_host() -> PluginHost:
    """A host that honours ``MILES_BLOCK_PLUGINS`` and ``MILES_ALLOW_PLUGINS``.

    Raises:
        UsageError: M203, one of them is no list.
    """
    return PluginHost(block=_names("block_plugins"), allow=_names("allow_plugins"))


def _names(field: str) -> list[str]:
    option = next(option for option in options_of(PluginOptions, "core") if option.field == field)
    variable = f"MILES_{field.upper()}"
    text = os.environ.get(variable, "")
    try:
        names: list[str] = from_environment(option, text)
    except BadValue as problem:
        raise bad_value(option, text, variable, problem) from problem
    return names
