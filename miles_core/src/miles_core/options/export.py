"""What a run folder gets: the resolved options, the plugin lock, and which options nobody read."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.options.config import Config
from miles_core.options.option import Option
from miles_core.options.value import USER_SOURCES, Source, Value
from miles_core.version import __version__

if TYPE_CHECKING:
    from miles_core.plugins.refs import PluginRef
    from miles_core.runtime.plan import RunPlan

MASK = "***"

_HEAD = """\
# The options of a run. `miles run --config` of this file repeats it.
# Lines that are commented out are defaults, a recipe's and derived values: they come out again by themselves.
"""


def write_config(config: Config, path: Path) -> None:
    """Write the options as YAML that ``--config`` reads back to the same values, without secrets."""
    path.write_text(config_yaml(config), encoding="utf-8")


def config_yaml(config: Config) -> str:
    """The text of :func:`write_config`. Only what somebody set is live: the rest follows from it again."""
    parts = [_HEAD]
    group: type | None = None
    for option, value in config.items():
        if option.group is not group:
            group = option.group
            parts.append(f"\n# {heading(option)}\n")
        key = option.flag.removeprefix("--")
        if option.declared.secret:
            parts.append(f"# {key}: secret, not written\n")
            continue
        line = f"{key}: {_yaml(value.value)}"
        note = "" if value.source is Source.DEFAULT else f"  # {' '.join(origin(value).split())}"
        parts.append(f"{'' if value.source in USER_SOURCES else '# '}{line}{note}\n")
    return "".join(parts)


def heading(option: Option) -> str:
    """What the option's dataclass is called: the first line of its docstring, and the plugin's name."""
    title = (option.group.__doc__ or option.group.__name__).strip().splitlines()[0].rstrip(".")
    return title if option.owner == "core" else f"{title} ({option.owner})"


def origin(value: Value) -> str:
    """Source and place in words: ``command line, argument 7``."""
    name = value.source.name.lower().replace("_", " ")
    return f"{name}, {value.place}" if value.place and value.source is not Source.DERIVED else name


def shown(option: Option, value: object) -> str:
    """A value on one line, and never a secret."""
    if option.declared.secret:
        return MASK if value else _yaml(value)
    return _yaml(value)


def _yaml(value: object) -> str:
    """A value as YAML on one line; JSON is YAML, and needs no import."""
    if isinstance(value, float):
        return repr(value)
    return "".join(c if c.isprintable() else _escape(c) for c in json.dumps(value, ensure_ascii=False))


def _escape(character: str) -> str:
    """What YAML's reader would refuse as such, escaped as both YAML and messages can have it."""
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def write_lock(plan: RunPlan, path: Path) -> None:
    """Write which plugins, of which distribution and version, the run was resolved with."""
    path.write_text(json.dumps(lock(plan), indent=2) + "\n", encoding="utf-8")


def lock(plan: RunPlan) -> dict[str, Any]:
    """The lock as plain data."""
    return {
        "miles-core": __version__,
        "python": platform.python_version(),
        "plugins": [
            {"kind": ref.kind, "name": ref.name, "distribution": ref.distribution, "version": ref.version, "create": ref.create}
            for ref in plugin_refs(plan)
        ],
    }


def plugin_refs(plan: RunPlan) -> list[PluginRef]:
    """Every plugin of the plan, each once."""
    p = plan.plugins
    refs = [p.backend, p.engine, p.algo, p.advantage, p.loss, p.reward, *p.filters, *p.loggers, *p.hooks, *p.functions.values()]
    refs += [p.router, *p.middlewares]
    return list(dict.fromkeys(ref for ref in refs if ref is not None))


def unread_report(config: Config, reads: Iterable[str]) -> list[str]:
    """A line for every option that somebody set and that nobody read.

    Args:
        config: of the driver, with its own reads.
        reads: flags that the other processes read.
    """
    return [
        f"nobody read {option.flag} ({origin(value)}; owner {option.owner}): it had no effect on this run"
        for option, value in config.unread(reads)
    ]
