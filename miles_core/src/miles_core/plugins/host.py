"""Tier 1: loading the named plugins, checking what they say, and telling them what happens."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from miles_core.errors import MilesError, PluginError, RunError
from miles_core.options import options_of
from miles_core.plugins import events, hookspecs, metadata, records
from miles_core.plugins.causes import describe
from miles_core.plugins.checks import check_hooks
from miles_core.plugins.index import Entry, PluginIndex, closest, conflict
from miles_core.plugins.metadata import CORE, normalise
from miles_core.plugins.refs import PluginRef

RECORDS: dict[str, type] = {
    "backend": records.BackendRecord,
    "engine": records.EngineRecord,
    "advantage": records.AdvantageRecord,
    "loss": records.LossRecord,
    "reward": records.RewardRecord,
    "filter": records.FilterRecord,
    "middleware": records.MiddlewareRecord,
    "logger": records.LoggerRecord,
    "algo": records.AlgorithmRecord,
    "commands": records.CommandRecord,
}
"""The record that each kind's provider hook yields; ``hooks`` has none."""

EVENTS: dict[type, str] = {
    events.Configure: "miles_configure",
    events.RunStart: "miles_run_start",
    events.RolloutEnd: "miles_rollout_end",
    events.TrainEnd: "miles_train_end",
    events.WeightsPublished: "miles_weights_published",
    events.EvalEnd: "miles_eval_end",
    events.CheckpointSaved: "miles_checkpoint_saved",
    events.RunEnd: "miles_run_end",
}
"""The lifecycle hook that receives each event."""

_CREATE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin whose record is known; ``record`` is None for observers (kind ``hooks``), ``options`` are its dataclasses."""

    ref: PluginRef
    record: Any
    options: tuple[type, ...]
    entry: Entry


class PluginHost:
    """Loads plugins by name and passes events to them.

    Args:
        index: what is installed; None scans.
        block: distributions, ``distribution:name`` or names that must not be imported.
        allow: when not empty, only these distributions or ``distribution:name`` may be imported. Core's own plugins always may.
    """

    def __init__(self, index: PluginIndex | None = None, *, block: Iterable[str] = (), allow: Iterable[str] = ()) -> None:
        self.index = PluginIndex.scan() if index is None else index
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self._block = tuple(block)
        self._allow = tuple(allow)
        self._loaded: dict[tuple[str, str], LoadedPlugin] = {}
        self._owners: dict[int, str] = {}

    @property
    def loaded(self) -> Sequence[LoadedPlugin]:
        """Every plugin loaded so far, in that order."""
        return tuple(self._loaded.values())

    def load(self, kind: str, name: str) -> LoadedPlugin:
        """Import the light module of the plugin of that name, check it, and find its record.

        Args:
            kind: one of :data:`miles_core.plugins.index.KINDS`.
            name: the plugin's name, or ``distribution:name``.

        Raises:
            PluginError: M101 to M107, see ``miles explain``.
        """
        entry = self._choose(kind, name)
        key = (kind, entry.qualified)
        if key not in self._loaded:
            if why := entry.incompatibility():
                fix = f"pip install --upgrade {entry.distribution} miles-core, or choose another {kind} plugin"
                raise PluginError("M105", f"the {kind} plugin {entry.name!r} does not fit", owner=entry.owner, why=why, fix=fix)
            plugin = self._import(entry)
            self._register(entry, plugin)
            record = None if kind == "hooks" else self._record(entry, plugin)
            self._loaded[key] = _loaded(entry, record)
        return self._loaded[key]

    def neighbours(self) -> list[LoadedPlugin]:
        """Plugins that the modules loaded so far offer besides those that were named. Imports no further module."""
        modules = {(loaded.entry.distribution, loaded.entry.value) for loaded in self.loaded}
        found = []
        for entry in self.index.entries:
            if (entry.kind, entry.qualified) in self._loaded or (entry.distribution, entry.value) not in modules:
                continue
            if entry.kind == "hooks" or self._blocked_by(entry):
                continue
            try:
                found.append(_loaded(entry, self._record(entry, self._import(entry))))
            except PluginError:
                # It is not named, so it is nobody's problem now; naming it, or doctor, says what is wrong.
                continue
        return found

    def broadcast(self, event: object) -> None:
        """Give an event of :mod:`miles_core.plugins.events` to every loaded plugin that implements its hook.

        All of them get it, also after one fails.

        Raises:
            PluginError: M106, a plugin failed in ``miles_configure``.
            RunError: M106, a plugin failed later. Failures after the first are notes of the exception; at the end of a run that
                failed, all are notes of that error, which they must not hide.
        """
        hook = EVENTS[type(event)]
        failures: list[MilesError] = []
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            others = [plugin for plugin in self.manager.get_plugins() if plugin is not implementation.plugin]
            try:
                self.manager.subset_hook_caller(hook, others)(event=event)
            except MilesError as error:
                failures.append(error)
            except (Exception, SystemExit) as error:
                kind = PluginError if isinstance(event, events.Configure) else RunError
                owner = self._owners[id(implementation.plugin)]
                fix = "report it to the plugin's author, or run without the plugin"
                failures.append(kind("M106", f"the hook {hook} failed", owner=owner, why=describe(error), fix=fix, hook=hook))
                failures[-1].__cause__ = error
        first: BaseException | None = event.error if isinstance(event, events.RunEnd) else None
        for failure in failures:
            if first is None:
                first = failure
            else:
                first.add_note(failure.line())
        if failures and first is failures[0]:
            raise first

    def _choose(self, kind: str, name: str) -> Entry:
        found = self.index.candidates(kind, name)
        permitted = [entry for entry in found if not self._blocked_by(entry)]
        if not permitted:
            entry = found[0]
            why = self._blocked_by(entry)
            fix = f"choose another {kind} plugin, or change that option"
            raise PluginError("M104", f"the {kind} plugin {entry.name!r} is blocked", owner=entry.owner, why=why, fix=fix)
        if len(permitted) > 1:
            raise conflict(permitted)
        return permitted[0]

    def _blocked_by(self, entry: Entry) -> str:
        def names(item: str) -> bool:
            distribution, _, name = item.rpartition(":")
            if distribution:
                return normalise(distribution) == normalise(entry.distribution) and name == entry.name
            return normalise(name) == normalise(entry.distribution)

        for item in self._block:
            if names(item) or item == entry.name:
                return f"--block-plugins has {item!r}"
        if self._allow and normalise(entry.distribution) != CORE and not any(map(names, self._allow)):
            return f"--allow-plugins has neither {entry.distribution!r} nor {entry.qualified!r}"
        return ""

    def _import(self, entry: Entry) -> object:
        try:
            return _load_through_stevedore(entry)
        except BaseException as error:
            # A plugin's import runs foreign code: whatever ends it, SystemExit included, must not end miles without its name.
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing and missing.partition(".")[0] != entry.value.partition(".")[0]:
                fix = f"pip install what provides the module {missing.partition('.')[0]!r}"
            else:
                fix = f"pip install --upgrade --force-reinstall {entry.distribution}, or choose another {entry.kind} plugin"
            what = f"the {entry.kind} plugin {entry.name!r} cannot be imported from {entry.value}"
            raise _unloadable(entry, what, error, fix) from error

    def _register(self, entry: Entry, plugin: object) -> None:
        if self.manager.is_registered(plugin):
            return
        if inspect.isclass(plugin) or plugin is None:
            raise _disagree(
                entry, f"{entry.value} is {plugin!r}", "let the entry point name a module, or an object that has the hooks"
            )
        check_hooks(plugin, entry.owner, self.manager)
        try:
            self.manager.register(plugin, f"{entry.distribution}={entry.value}")
            self.manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self.manager.is_registered(plugin):
                self.manager.unregister(plugin)
            fix = "compare with docs/hooks.md"
            raise PluginError("M106", f"{entry.value} has an invalid hook", owner=entry.owner, why=str(error), fix=fix) from error
        if not self.manager.get_hookcallers(plugin):
            self.manager.unregister(plugin)
            raise _disagree(entry, f"{entry.value} implements no hook", "write one, marked with @hookimpl; see docs/hooks.md")
        self._owners[id(plugin)] = entry.owner

    def _record(self, entry: Entry, plugin: object) -> Any:
        hook = provider(entry.kind)
        kind = RECORDS[entry.kind]
        if not any(caller.name == hook for caller in self.manager.get_hookcallers(plugin) or ()):
            raise _disagree(
                entry, f"{entry.value} has no hook {hook}", f"write it, marked with @hookimpl, and return a {kind.__name__}"
            )
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        try:
            answers = self.manager.subset_hook_caller(hook, others)()
            offered = [record for answer in answers for record in answer]
        except BaseException as error:
            fix = f"report it to the author of {entry.distribution}, or choose another {entry.kind} plugin"
            raise _unloadable(entry, f"the hook {hook} of the {entry.kind} plugin {entry.name!r} fails", error, fix) from error
        for record in offered:
            if not isinstance(record, kind):
                raise _disagree(entry, f"{hook} returned {record!r}", f"return a sequence of {kind.__name__}")
        mine = [record for record in offered if record.name == entry.name]
        if len(mine) != 1:
            names = [record.name for record in offered]
            near = closest(entry.name, names) if not mine else None
            why = f"{hook} returned {len(mine) or 'no'} records of that name; its names are {', '.join(map(repr, names)) or 'none'}"
            fix = f"name the entry point {near!r}, or the record {entry.name!r}" if near else "give both one name, once"
            raise _disagree(entry, why, fix)
        _check_record(entry, mine[0])
        return mine[0]


def provider(kind: str) -> str:
    """The hook that offers records of a kind."""
    return "miles_command" if kind == "commands" else f"miles_{kind}"


def _load_through_stevedore(entry: Entry) -> object:
    from stevedore.driver import DriverManager

    class Driver(DriverManager):  # type: ignore[misc]
        """Stevedore's loader by name, over our index: its own scan and its cache on disk are never asked."""

        def list_entry_points(self) -> list[Any]:
            return [metadata.entry_point(entry.group, entry.name, entry.value)]

    manager = Driver(entry.group, entry.name, on_load_failure_callback=_raise, on_missing_entrypoints_callback=None)
    return manager.extensions[0].plugin


def _raise(manager: object, entry_point: object, error: BaseException) -> None:
    raise error


def _check_record(entry: Entry, record: Any) -> None:
    if not isinstance(record, records.AlgorithmRecord) and not (
        isinstance(record.create, str) and _CREATE.fullmatch(record.create)
    ):
        raise _disagree(entry, f"create is {record.create!r}", "write it as 'package.module:attribute'")
    if not isinstance(getattr(record, "capabilities", frozenset()), Collection):
        raise _disagree(entry, f"capabilities is {record.capabilities!r}", "write a frozenset of names")
    for group in records.option_groups(record):
        try:
            options_of(group, record.name)
        except (TypeError, AttributeError, NameError) as error:
            why = f"options is {group!r}: {error}"
            raise _disagree(entry, why, "let options be a frozen dataclass whose fields are made with option(...)") from error


def _unloadable(entry: Entry, what: str, error: BaseException, fix: str) -> PluginError:
    return PluginError("M103", what, owner=entry.owner, why=describe(error), fix=fix, kind=entry.kind, name=entry.name)


def _disagree(entry: Entry, why: str, fix: str) -> PluginError:
    what = f"entry point and record of the {entry.kind} plugin {entry.name!r} disagree"
    return PluginError("M107", what, owner=entry.owner, why=why, fix=fix, kind=entry.kind, name=entry.name)


def _loaded(entry: Entry, record: Any) -> LoadedPlugin:
    ref = PluginRef(
        kind=entry.kind,
        name=entry.name,
        distribution=entry.distribution,
        version=entry.version,
        create=getattr(record, "create", ""),
        capabilities=frozenset(getattr(record, "capabilities", ())),
    )
    return LoadedPlugin(ref, record, records.option_groups(record), entry)
