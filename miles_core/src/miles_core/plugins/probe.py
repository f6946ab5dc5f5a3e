"""What :mod:`miles_core.plugins.doctor` runs in a process of its own: load plugins, write down what came of it."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from miles_core.errors import MilesError
from miles_core.options import options_of
from miles_core.plugins.causes import describe
from miles_core.plugins.host import LoadedPlugin, PluginHost

HEAVY = ("torch", "ray", "transformers", "sglang", "megatron", "numpy", "aiohttp")
"""Modules that a light plugin module must not import: naming the plugin would take seconds."""


def main(result: str, *names: str) -> None:
    """Load every ``kind/distribution:name`` and write a JSON object of findings to the file ``result``, after each one."""
    host = PluginHost()
    found: dict[str, Any] = {}
    for name in names:
        kind, _, qualified = name.partition("/")
        try:
            loaded = host.load(kind, qualified)
            problem = _problem(loaded)
            flags = [o.flag for group in loaded.options for o in options_of(group, loaded.ref.name)]
            found[name] = {"problem": problem, "flags": flags}
        except MilesError as error:
            found[name] = {"problem": error.line(), "flags": []}
        Path(result).write_text(json.dumps(found), encoding="utf-8")


def _problem(loaded: LoadedPlugin) -> str:
    entry = loaded.entry
    heavy = [name for name in HEAVY if name in sys.modules]
    if heavy:
        return f"{entry.owner}: {entry.value} imports {', '.join(heavy)}. Do: move that behind the record's create"
    if not loaded.ref.create:
        return ""
    module = loaded.ref.create.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:
        return f"{entry.owner}: looking for {module}, which create names, fails with {describe(error)}. Do: repair the package"
    return "" if spec else f"{entry.owner}: there is no module {module}, which create names. Do: correct the record's create"


if __name__ == "__main__":
    main(*sys.argv[1:])
    # A thread that a plugin left behind must not hold up the check.
    os._exit(0)
