"""What the environment says to commands that have no options of a run."""

from __future__ import annotations

import os
import re

from miles_core.plugins import PluginHost


def plugin_host() -> PluginHost:
    """A host that honours ``MILES_BLOCK_PLUGINS`` and ``MILES_ALLOW_PLUGINS``: names, separated by commas or spaces."""
    return PluginHost(block=_names("MILES_BLOCK_PLUGINS"), allow=_names("MILES_ALLOW_PLUGINS"))


def _names(variable: str) -> list[str]:
    return [name for name in re.split(r"[,\s\[\]\"']+", os.environ.get(variable, "")) if name]
