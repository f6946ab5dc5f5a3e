"""The help of ``miles run``: one section per owner, aligned and wrapped to the terminal."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from miles_core.errors import MilesError, PluginError
from miles_core.options.invocation import InvocationOptions
from miles_core.options.option import Option, options_of
from miles_core.options.resolve import Resolved, core_options
from miles_core.plugins import PluginHost
from miles_core.plugins.host import LoadedPlugin
from miles_core.plugins.index import KINDS

USAGE = "Usage: miles run [OPTION ...]"
SUMMARY = (
    "Train a model: sample responses, grade them, update the policy, publish its weights, and again. Defaults are overridden by "
    "the algorithm recipe, that by --config FILE, that by MILES_* variables, and all by arguments."
)

_LEFT = 34


def selected_help(resolved: Resolved, width: int | None = None) -> str:
    """Help for core and for the plugins that the arguments select. A plugin that cannot be loaded is one line."""
    failures = [error for error in resolved.selection.errors if isinstance(error, PluginError)]
    return _page(resolved.selection.loaded, failures, "Options of other installed plugins: miles run --help-all", width)


def complete_help(host: PluginHost, width: int | None = None) -> str:
    """Help for core and for every installed plugin. A plugin that cannot be loaded is one line."""
    loaded: list[LoadedPlugin] = []
    failures: list[MilesError] = []
    for entry in host.index.entries:
        if entry.kind == "commands":
            continue
        try:
            loaded.append(host.load(entry.kind, entry.qualified))
        except PluginError as error:
            failures.append(error)
    return _page(loaded, failures, "", width)


def _page(loaded: Sequence[LoadedPlugin], failures: Sequence[MilesError], last: str, width: int | None) -> str:
    width = width or min(max(shutil.get_terminal_size((100, 24)).columns, 60), 140)
    parts = [
        USAGE,
        textwrap.fill(SUMMARY, width, break_on_hyphens=False),
        section("This command", options_of(InvocationOptions, "core"), width),
    ]
    parts += [section(title, options, width) for title, options in _by_group(core_options())]
    seen: set[type] = set()
    for plugin in sorted(loaded, key=lambda each: KINDS.index(each.ref.kind)):
        for group in plugin.options:
            if group in seen:
                continue
            seen.add(group)
            sharing = [p for p in loaded if group in p.options]
            names = ", ".join(dict.fromkeys(f"{p.ref.kind} {p.ref.name}" for p in sharing))
            title = f"{_title(group)} ({names}, {plugin.entry.owner})"
            parts.append(section(title, options_of(group, plugin.ref.name), width))
    if failures:
        parts.append("Plugins that cannot be loaded\n" + "\n".join(f"  {error.line()}" for error in failures))
    if last:
        parts.append(last)
    return "\n\n".join(parts)


def _by_group(options: Iterable[Option]) -> list[tuple[str, list[Option]]]:
    groups: dict[str, list[Option]] = {}
    for option in options:
        groups.setdefault(_title(option.group), []).append(option)
    return list(groups.items())


def _title(group: type) -> str:
    return (group.__doc__ or group.__name__).strip().splitlines()[0].rstrip(".")


def section(title: str, options: Iterable[Option], width: int) -> str:
    """A heading and a line or more for each option, ``width`` columns wide."""
    return "\n".join([title, *(_entry(option, width) for option in options)])


def _entry(option: Option, width: int) -> str:
    head = f"  {_usage(option)}"
    pad = " " * _LEFT
    lines = textwrap.wrap(_description(option), max(width - _LEFT, 24), break_long_words=False, break_on_hyphens=False)
    if len(head) > _LEFT - 2:
        return "\n".join([head, *(pad + line for line in lines)])
    return "\n".join([head.ljust(_LEFT) + lines[0], *(pad + line for line in lines[1:])])


def _usage(option: Option) -> str:
    """``--flag, --alias VALUE``."""
    flags = ", ".join((*sorted(option.declared.aliases, key=len)[:1], option.flag, *sorted(option.declared.aliases, key=len)[1:]))
    if option.kind is bool:
        return f"{flags}, --no-{option.flag[2:]}" if option.default is not False else flags
    return f"{flags} {_metavar(option)}"


def _metavar(option: Option) -> str:
    declared = option.declared
    base = option.kind
    text = declared.metavar
    if text is None:
        if declared.choices:
            text = "|".join(map(str, declared.choices))
            text = text if len(text) <= 24 else "CHOICE"
        else:
            name = str(base)
            known = {int: "INT", float: "NUMBER", str: "TEXT"}
            text = known.get(base) or ("INT" if "int" in name else "JSON" if "dict" in name else "TEXT")
    return f"{text} ..." if str(base).startswith("list") else text


def _description(option: Option) -> str:
    notes = []
    if _metavar(option).startswith("CHOICE"):
        notes.append(f"one of {', '.join(map(str, option.declared.choices))}")
    default = option.default
    if default not in (None, [], {}) and default is not False and not option.declared.secret:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        notes.append(f"default {json.dumps(shown) if isinstance(shown, (bool, dict)) else shown}")
    return f"{option.declared.help} [{'; '.join(notes)}]" if notes else option.declared.help
