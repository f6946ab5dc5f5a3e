"""Which plugins the options name, and loading their records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miles_core.config import CriticOptions, LoggingOptions, PluginOptions, RewardOptions, RouterOptions
from miles_core.config.logging import SWITCHES, logger_names
from miles_core.errors import MilesError, PluginError
from miles_core.options.config import Config
from miles_core.options.option import Option, options_of
from miles_core.options.value import USER_SOURCES, Source
from miles_core.plugins.adhoc import load_adhoc, packaged
from miles_core.plugins.host import LoadedPlugin, PluginHost
from miles_core.plugins.records import AlgorithmRecord
from miles_core.plugins.refs import PluginRef

FILTER_FLAG = "--dynamic-sampling-filter-path"
MIDDLEWARE_FLAG = "--miles-router-middleware-paths"
TEXT_CACHE = "radix_tree"
"""The middleware that ``--use-miles-router`` stands for."""
OBJECTS = ("filter", "reward")
"""Signatures of functions that stand in for a plugin, which its own kind loads."""


@dataclass
class Selection:
    """The plugins that a run names. What failed to load is None, or absent, and has its error in ``errors``.

    A plugin that the run does not need (the engine of a supervised run without evaluation) is here when it was named: its options
    exist and its errors count. ``needed`` says which kinds the run uses.
    ``namesake`` is the recipe called like the estimator that the user named without ``--algo``: it says which loss belongs to it.
    ``functions`` are those that options name by path and that stand in for no plugin, by the name of their signature.
    """

    host: PluginHost
    backend: PluginRef | None = None
    engine: PluginRef | None = None
    advantage: PluginRef | None = None
    loss: PluginRef | None = None
    reward: PluginRef | None = None
    algo: PluginRef | None = None
    recipe: AlgorithmRecord | None = None
    namesake: AlgorithmRecord | None = None
    critic_loss: PluginRef | None = None
    filters: list[PluginRef] = field(default_factory=list)
    middlewares: list[PluginRef] = field(default_factory=list)
    functions: dict[str, PluginRef] = field(default_factory=dict)
    loggers: list[PluginRef] = field(default_factory=list)
    hooks: list[PluginRef] = field(default_factory=list)
    loaded: list[LoadedPlugin] = field(default_factory=list)
    errors: list[MilesError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def supervised(self) -> bool:
        """Whether responses come from the data."""
        return self.loss is not None and "supervised" in self.loss.capabilities

    @property
    def has_critic(self) -> bool:
        """Whether the advantage estimator needs values of a critic."""
        return not self.supervised and self.advantage is not None and "critic" in self.advantage.capabilities

    def options(self) -> list[Option]:
        """The options of every loaded plugin; a dataclass that two of them share comes once."""
        found: list[Option] = []
        seen: set[type] = set()
        for plugin in self.loaded:
            for group in plugin.options:
                if group not in seen:
                    seen.add(group)
                    found += options_of(group, plugin.ref.name)
        return found

    def owners(self) -> dict[str, str]:
        """What each plugin's name stands for: distribution and version."""
        return {plugin.ref.name: plugin.entry.owner for plugin in self.loaded}


def load_recipe(host: PluginHost, config: Config) -> Selection:
    """Begin a selection: the recipe that ``--algo`` names.

    A name that is no recipe but an advantage estimator is accepted, as the same choice by another name.
    """
    selection = Selection(host)
    name = config.peek(PluginOptions).algo
    if name is None:
        selection.namesake = _namesake(host, config)
        return selection
    try:
        plugin = host.load("algo", name)
    except PluginError as error:
        if error.code == "M101" and any(name in (e.name, e.qualified) for e in host.index.of_kind("advantage")):
            return selection
        selection.errors.append(error)
        return selection
    selection.algo, selection.recipe = plugin.ref, plugin.record
    selection.loaded.append(plugin)
    return selection


def _namesake(host: PluginHost, config: Config) -> AlgorithmRecord | None:
    value = config.value(PluginOptions, "advantage_estimator")
    if value.source not in USER_SOURCES:
        return None
    mine = {kind: [e for e in host.index.of_kind(kind) if value.value in (e.name, e.qualified)] for kind in ("advantage", "algo")}
    homes = {entry.distribution for entry in mine["advantage"]}
    found = [entry for entry in mine["algo"] if entry.distribution in homes]
    if len(found) != 1:
        return None
    try:
        record: AlgorithmRecord = host.load("algo", found[0].qualified).record
    except PluginError:
        return None  # the estimator, which the same package offers, fails to load as well, and says so
    return record if record.advantage == found[0].name else None


def recipe_choices(selection: Selection, config: Config) -> dict[str, Any]:
    """The fields of :class:`PluginOptions` that ``--algo`` decides; without it, the loss of a named estimator."""
    recipe = selection.recipe
    if selection.namesake is not None:
        return {"loss_type": selection.namesake.loss}
    if recipe is None:
        name = config.peek(PluginOptions).algo
        return {"advantage_estimator": name} if name is not None and not selection.errors else {}
    choices: dict[str, Any] = {"loss_type": recipe.loss}
    if recipe.advantage is not None:
        choices["advantage_estimator"] = recipe.advantage
    if len(recipe.filters) == 1:
        choices["dynamic_sampling_filter_path"] = recipe.filters[0]
    return choices


def load_named(selection: Selection, config: Config, evaluates: bool) -> None:
    """Load the records of every plugin that ``config`` names; failures go to ``selection.errors``."""
    chosen = config.peek(PluginOptions)
    rewards = config.peek(RewardOptions)
    source = {name: config.value(PluginOptions, name).source for name in ("engine", "advantage_estimator", "rm_type")}

    def load(kind: str, name: str, needed: bool = True) -> PluginRef | None:
        try:
            plugin = selection.host.load(kind, name)
        except PluginError as error:
            if needed:
                selection.errors.append(error)
            return None
        if plugin not in selection.loaded:
            selection.loaded.append(plugin)
        return plugin.ref

    def adhoc(path: str, signature: str, flag: str) -> PluginRef | None:
        try:
            return load_adhoc(path, signature, flag)
        except PluginError as error:
            selection.errors.append(error)
            return None

    selection.backend = load("backend", chosen.backend)
    selection.loss = load("loss", chosen.loss_type)
    # A supervised run may do without these; then only naming one makes its failure an error.
    alone = selection.supervised
    named = {name: where in USER_SOURCES for name, where in source.items()}
    selection.engine = load("engine", chosen.engine, named["engine"] or not alone or evaluates)
    selection.advantage = load("advantage", chosen.advantage_estimator, named["advantage_estimator"] or not alone)
    if selection.has_critic:
        selection.critic_loss = load("loss", config.peek(CriticOptions).critic_loss_type)
    if chosen.rm_type is not None:
        selection.reward = load("reward", chosen.rm_type)
    if rewards.custom_rm_path is not None:
        selection.reward = adhoc(rewards.custom_rm_path, "reward", "--custom-rm-path")
    _load_filters(selection, config, load, adhoc)
    _load_middlewares(selection, config, load, adhoc)
    _load_loggers(selection, config, load)
    selection.hooks = [ref for name in chosen.hooks if (ref := load("hooks", name))]
    _name_disagreement(selection, config)


def load_functions(selection: Selection, config: Config) -> None:
    """Import the functions that options name by path, those of the selected plugins too; failures go to ``selection.errors``."""
    for option, value in config.items():
        signature = option.declared.signature
        if signature is None or signature in OBJECTS or value.value is None:
            continue
        try:
            selection.functions[signature] = load_adhoc(packaged(value.value), signature, option.flag)
        except PluginError as error:
            selection.errors.append(error)


def _load_filters(
    selection: Selection,
    config: Config,
    load: Callable[[str, str], PluginRef | None],
    adhoc: Callable[[str, str, str], PluginRef | None],
) -> None:
    value = config.value(PluginOptions, "dynamic_sampling_filter_path")
    names: tuple[str, ...] = (value.value,) if value.value is not None else ()
    if value.source in (Source.DEFAULT, Source.RECIPE) and selection.recipe is not None and selection.recipe.filters:
        names = selection.recipe.filters
    for name in names:
        ref = adhoc(name, "filter", FILTER_FLAG) if "." in name else load("filter", name)
        if ref is not None:
            selection.filters.append(ref)


def _load_middlewares(
    selection: Selection,
    config: Config,
    load: Callable[[str, str], PluginRef | None],
    adhoc: Callable[[str, str, str], PluginRef | None],
) -> None:
    options = config.peek(RouterOptions)
    names = ([TEXT_CACHE] if options.use_miles_router else []) + options.miles_router_middleware_paths
    for name in dict.fromkeys(names):
        ref = adhoc(name, "middleware", MIDDLEWARE_FLAG) if "." in name else load("middleware", name)
        if ref is not None:
            selection.middlewares.append(ref)


def _load_loggers(selection: Selection, config: Config, load: Callable[[str, str], PluginRef | None]) -> None:
    known = {entry.name for entry in selection.host.index.of_kind("logger")}
    for name in logger_names(config.peek(PluginOptions).logger, config.peek(LoggingOptions)):
        if name in SWITCHES and name not in known:
            fix = f"pip install 'miles-loggers[{name}]'"
            selection.errors.append(
                PluginError("M101", f"there is no logger {name!r}", why="miles-loggers is not installed", fix=fix, name=name)
            )
        elif ref := load("logger", name):
            selection.loggers.append(ref)


def _name_disagreement(selection: Selection, config: Config) -> None:
    algo = config.value(PluginOptions, "algo")
    if algo.value is None:
        return
    implied = recipe_choices(selection, config)
    for name, flag in (("advantage_estimator", "--advantage-estimator"), ("loss_type", "--loss-type")):
        value = config.value(PluginOptions, name)
        if name in implied and value.value != implied[name] and value.source in USER_SOURCES:
            ignored = f"the {implied[name]} that --algo {algo.value} ({algo.place}) means"
            selection.warnings.append(f"{flag} {value.value} ({value.place}) is used, not {ignored}")
