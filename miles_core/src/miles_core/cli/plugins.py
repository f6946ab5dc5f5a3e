"""``miles plugins``: what is installed, what one plugin offers, and whether all are well."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import click

from miles_core.cli.environment import plugin_host
from miles_core.cli.table import table
from miles_core.errors import MilesError, PluginError
from miles_core.options import Option, options_of
from miles_core.plugins import KINDS, Entry, LoadedPlugin, PluginHost, PluginIndex
from miles_core.plugins.index import closest
from miles_core.plugins.metadata import normalise


@click.group()
def plugins() -> None:
    """List, show and check the installed plugins."""


@plugins.command("list")
@click.option("--kind", type=click.Choice(KINDS), help="Only plugins of this kind.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON array.")
def list_plugins(kind: str | None, as_json: bool) -> None:
    """List the installed plugins, from metadata: none of them is imported."""
    index = PluginIndex.scan()
    entries = [entry for entry in index.entries if kind in (None, entry.kind)]
    rows = [(entry, _status(entry, index)) for entry in entries]
    if as_json:
        click.echo(json.dumps([_facts(entry) | {"status": status} for entry, status in rows], indent=2))
    elif rows:
        cells = [(e.kind, e.name, e.distribution, e.version, e.origin, status) for e, status in rows]
        click.echo(table(("KIND", "NAME", "DISTRIBUTION", "VERSION", "ORIGIN", "STATUS"), cells))
    else:
        click.echo(f"no {kind or ''} plugin is installed".replace("  ", " "))
    if count := len(index.problems()):
        click.echo(f"{count} problem{'s' if count > 1 else ''}: see miles plugins doctor", err=True)


@plugins.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), help="Only the plugin of this kind.")
def info(name: str, kind: str | None) -> int:
    """Show what the plugin NAME offers, by its name, DISTRIBUTION:NAME, or DISTRIBUTION. Imports its light module only."""
    host = plugin_host()
    entries = _named(host, name, kind)
    code = 0
    for number, entry in enumerate(entries):
        if number:
            click.echo()
        try:
            click.echo(_description(host.load(entry.kind, entry.qualified)))
        except MilesError as error:
            click.echo(error.line(), err=True)
            code = error.exit_code
    return code


@plugins.command()
@click.option("--timeout", type=float, default=20.0, show_default=True, help="Seconds that loading one plugin may take.")
def doctor(timeout: float) -> int:
    """Load every installed plugin in a process of its own, and say what is wrong. Exit code 1 when something is."""
    from miles_core.plugins.doctor import examine, shared_flags

    index = PluginIndex.scan()
    problems = [problem.line() for problem in index.problems()]
    findings = examine(index, timeout=timeout)
    if findings:
        cells = [(f.entry.kind, f.entry.name, f.entry.owner, "FAILS" if f.problem else "ok") for f in findings]
        click.echo(table(("KIND", "NAME", "DISTRIBUTION", "CHECK"), cells))
    problems += list(dict.fromkeys(finding.problem for finding in findings if finding.problem))
    for note in shared_flags(findings):
        click.echo(f"note: {note}")
    for problem in problems:
        click.echo(f"problem: {problem}")
    click.echo(f"{len(findings)} plugins, {len(problems)} problem{'' if len(problems) == 1 else 's'}")
    return 1 if problems else 0


def _status(entry: Entry, index: PluginIndex) -> str:
    others = [e for e in index.of_kind(entry.kind) if e.name == entry.name and e is not entry]
    if others:
        return f"conflict with {', '.join(e.distribution for e in others)}: write {entry.qualified}"
    return entry.incompatibility() or "ok"


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "origin": entry.origin,
        "value": entry.value,
        "requires_core": list(entry.requires_core),
        "location": entry.location,
    }


def _named(host: PluginHost, name: str, kind: str | None) -> list[Entry]:
    distribution, _, short = name.rpartition(":")
    pool = [entry for entry in host.index.entries if kind in (None, entry.kind)]
    found = [e for e in pool if e.name == short and (not distribution or normalise(e.distribution) == normalise(distribution))]
    found = found or [e for e in pool if normalise(e.distribution) == normalise(name)]
    if not found:
        if kind is not None:
            host.index.find(kind, name)
        near = closest(name, sorted({e.name for e in pool} | {e.distribution for e in pool}))
        fix = f"did you mean {near!r}?" if near else "see miles plugins list, or install its distribution"
        raise PluginError("M101", f"there is no plugin {name!r}", why="no installed distribution offers it", fix=fix)
    return found


def _description(loaded: LoadedPlugin) -> str:
    entry, record = loaded.entry, loaded.record
    facts = [
        ("kind", entry.kind),
        ("from", f"{entry.owner} ({entry.origin})"),
        ("source", _source(entry)),
        ("needs", ", ".join(entry.requires_core)),
        ("create", loaded.ref.create),
        ("capabilities", ", ".join(sorted(loaded.ref.capabilities))),
    ]
    for field in ("advantage", "loss", "filters", "defaults"):
        if value := getattr(record, field, None):
            facts.append((field, _plain(value)))
    summary = getattr(record, "summary", "")
    lines = [f"{entry.name}: {summary}" if summary else entry.name]
    lines += [f"  {label:<13} {text}" for label, text in facts if text]
    options = [option for group in loaded.options for option in options_of(group, loaded.ref.name)]
    if options:
        cells = [(" ".join((o.flag, *o.declared.aliases)), _type(o), _default(o), o.declared.help) for o in options]
        rows = table(("OPTION", "TYPE", "DEFAULT", "MEANING"), cells).splitlines()
        lines += ["", *(f"  {row}" for row in rows)]
    return "\n".join(lines)


def _source(entry: Entry) -> str:
    spec = importlib.util.find_spec(entry.value.partition(":")[0].strip())
    return (spec.origin if spec else None) or entry.value


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(value) if isinstance(value, (tuple, list)) else str(value)


def _type(option: Option) -> str:
    if option.declared.choices:
        return "|".join(map(str, option.declared.choices))
    name = getattr(option.kind, "__name__", str(option.kind))
    return str(option.kind) if "[" in str(option.kind) else name


def _default(option: Option) -> str:
    return "(secret)" if option.declared.secret else str(option.default)
