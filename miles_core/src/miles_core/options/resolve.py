"""From the command line, the environment, a YAML file and a recipe to one configuration, with all mistakes together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from miles_core.config import CORE_GROUPS, EvaluationOptions, PluginOptions
from miles_core.errors import MilesError, UsageError, UsageErrors
from miles_core.options.config import Config
from miles_core.options.invocation import InvocationOptions
from miles_core.options.option import Option, options_of
from miles_core.options.parse import Parsed, Words, parse_arguments, split_arguments
from miles_core.options.selection import Selection, load_functions, load_named, load_recipe, recipe_choices
from miles_core.options.sources import ConfigFile, parse_environment, parse_recipe
from miles_core.options.table import FlagTable, Setting
from miles_core.options.value import Source, Value
from miles_core.plugins.flags import check_flags
from miles_core.plugins.host import PluginHost
from miles_core.plugins.index import PluginIndex

_CERTAIN = 0.85
"""How close an unknown flag must be to a known one to be reported while a plugin, whose flag it may be, failed to load."""


@dataclass
class Resolved:
    """What the sources say.

    Attributes:
        config: every option of core and of the loaded plugins.
        selection: the plugins.
        invocation: options of this call: dry run, help.
        errors: mistakes of sources and plugins; a run must not start when there are any.
        warnings: one line each.
    """

    config: Config
    selection: Selection
    invocation: InvocationOptions
    errors: list[MilesError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def host(self) -> PluginHost:
        """The host that has the plugins loaded."""
        return self.selection.host

    def check(self) -> None:
        """Go on only without mistakes.

        Raises:
            UsageErrors: there are errors.
        """
        if self.errors:
            raise UsageErrors(self.errors)


@dataclass
class _Sources:
    """The sources as they are, before any flag is known."""

    words: list[Words]
    environment: Mapping[str, str]
    file: ConfigFile | None

    def parse(self, options: Sequence[Option]) -> list[Parsed]:
        """Every source with the same table, in rising precedence."""
        table = FlagTable(options)
        parsed = [self.file.parse(table)] if self.file is not None else []
        return [*parsed, parse_environment(self.environment, table), parse_arguments(self.words, table)]


def core_options() -> list[Option]:
    """Core's options, in the order of its groups."""
    return [option for group in CORE_GROUPS for option in options_of(group, "core")]


def resolve(
    arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, index: PluginIndex | None = None
) -> Resolved:
    """Resolve a command line.

    First the options that choose plugins are read; then the records of the chosen plugins are loaded, and everything is parsed
    with all of their options. Never raises for a mistake of the user: they are collected in the result.

    Args:
        arguments: of ``miles run``.
        environment: of which ``MILES_*`` count; None takes this process's.
        index: installed plugins; None scans.
    """
    environment = os.environ if environment is None else environment
    words, invocation, errors = _take_invocation(split_arguments(arguments))
    path = invocation.config or environment.get("MILES_CONFIG")
    sources = _Sources(words, environment, ConfigFile(path) if path else None)

    options = core_options()
    parsed = sources.parse(options)
    config = _config(options, parsed)
    chosen = config.peek(PluginOptions)
    selection = load_recipe(PluginHost(index, block=chosen.block_plugins, allow=chosen.allow_plugins), config)
    config = _with_recipe(_config(options, [_recipe(selection, options), *parsed]), selection)
    load_named(selection, config, evaluates=config.peek(EvaluationOptions).eval_interval is not None)

    options = [*options, *selection.options()]
    conflicts = check_flags([*options_of(InvocationOptions, "core"), *options], selection.owners())
    parsed = [_recipe(selection, options), *sources.parse(options)]
    config = _with_recipe(_config(options, parsed), selection)
    load_functions(selection, config)

    errors += selection.errors
    errors += conflicts
    for source in parsed:
        errors += source.errors
    if not conflicts:
        errors += _unknown(parsed, FlagTable(options), selection)
    warnings = [line for source in parsed for line in source.warnings] + selection.warnings
    return Resolved(config, selection, invocation, errors, warnings)


def _take_invocation(words: Iterable[Words]) -> tuple[list[Words], InvocationOptions, list[MilesError]]:
    """Split off the options of this call."""
    table = FlagTable(options_of(InvocationOptions, "core"))
    mine: list[Words] = []
    rest: list[Words] = []
    for group in words:
        (mine if table.flag(group.flag) else rest).append(group)
    parsed = parse_arguments(mine, table)
    invocation = InvocationOptions(**{s.option.field: s.value for s in parsed.settings})  # type: ignore[arg-type]
    return rest, invocation, list(parsed.errors)


def _recipe(selection: Selection, options: Sequence[Option]) -> Parsed:
    """The recipe as a source, without defaults of a loss or an estimator that the user replaced."""
    recipe, ref = selection.recipe, selection.algo
    if recipe is None or ref is None:
        return Parsed()
    table = FlagTable(options)
    parts = ((selection.loss, recipe.loss), (selection.advantage, recipe.advantage))
    replaced = any(part is not None and name is not None and name.rpartition(":")[2] != part.name for part, name in parts)
    defaults = {key: value for key, value in recipe.defaults.items() if not replaced or table.key(key) is not None}
    return parse_recipe(recipe.name, f"{ref.distribution} {ref.version}", defaults, table)


def _config(options: Iterable[Option], parsed: Iterable[Parsed]) -> Config:
    """Defaults, overridden by each source in turn."""
    best: dict[tuple[type, str], Setting] = {}
    for source in parsed:
        for setting in source.settings:
            best[setting.option.group, setting.option.field] = setting
    pairs = []
    for option in options:
        found = best.get((option.group, option.field))
        value = Value(found.value, found.source, found.place) if found else Value(option.default, Source.DEFAULT, "")
        pairs.append((option, value))
    return Config(pairs)


def _with_recipe(config: Config, selection: Selection) -> Config:
    """The choices that ``--algo`` or ``--advantage-estimator`` implies, where nobody said otherwise."""
    choices = recipe_choices(selection, config)
    chosen = config.peek(PluginOptions)
    place = f"--advantage-estimator {chosen.advantage_estimator}" if selection.namesake else f"--algo {chosen.algo}"

    def merged(option: Option, value: Value) -> Value:
        if option.group is PluginOptions and option.field in choices and value.source < Source.RECIPE:
            return Value(choices[option.field], Source.RECIPE, place)
        return value

    return Config((option, merged(option, value)) for option, value in config.items())


def _unknown(parsed: Iterable[Parsed], table: FlagTable, selection: Selection) -> list[UsageError]:
    """Errors for names that no option has. While a plugin failed to load, only for those that are surely misspelt."""
    failed = bool(selection.errors)
    errors = []
    for source in parsed:
        for name, place in source.unknown:
            on_command_line = name.startswith("-")
            near_of = table.near_flag if on_command_line else table.near_key
            if failed and near_of(name, _CERTAIN) is None:
                continue
            near = near_of(name)
            owner = _unselected(name, selection)
            fix = f"did you mean {near}?" if near else "see miles run --help"
            why = ""
            if owner is not None:
                why, fix = f"it {owner}, which is not selected", f"select it, or leave {name} out"
            code, what = ("M201", f"there is no option {name}") if on_command_line else ("M206", f"there is no option {name!r}")
            errors.append(UsageError(code, what, owner=place, why=why, fix=fix, name=name))
    return errors


def _unselected(name: str, selection: Selection) -> str | None:
    """What to say of an option that belongs to a plugin which the run does not use; None when nothing is known.

    Looked up in the modules that are loaded anyway, then by the front of the flag (``--acme-size``) in the index alone.
    """
    stem = name.lstrip("-").replace("_", "-")
    holders = [
        plugin
        for plugin in selection.host.neighbours()
        if any(stem == o.flag.lstrip("-") for group in plugin.options for o in options_of(group, plugin.ref.name))
    ]
    if holders:
        kinds: dict[str, list[str]] = {}
        for plugin in holders:
            kinds.setdefault(plugin.ref.kind, []).append(plugin.ref.name)
        named = " and ".join(f"{kind} {'/'.join(names)}" for kind, names in kinds.items())
        return f"is an option of {named} ({holders[0].entry.owner})"
    taken = {(plugin.ref.kind, plugin.ref.name) for plugin in selection.loaded}
    for entry in selection.host.index.entries:
        if (entry.kind, entry.name) not in taken and stem.startswith(entry.name.replace("_", "-") + "-"):
            return f"may be an option of the {entry.kind} plugin {entry.name!r} ({entry.owner})"
    return None
