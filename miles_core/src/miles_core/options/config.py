"""The resolved configuration of a run: typed groups, and a record of what was read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from miles_core.options.option import Option, options_of
from miles_core.options.value import USER_SOURCES, Source, Value

T = TypeVar("T")


class Config:
    """Resolved options, handed to every part of a run. Pickles; each process records its own reads.

    ``config.get(TrainingOptions).lr`` is how any code reads an option.
    """

    def __init__(self, values: Iterable[tuple[Option, Value]]) -> None:
        self._values = {(o.group, o.field): (o, v) for o, v in values}
        self._read: set[str] = set()
        self._views: dict[type, Any] = {}

    @classmethod
    def of(cls, *groups: Any, owners: Mapping[type, str] | None = None) -> Config:
        """A config of option instances, for tests and scripts: ``Config.of(TrainingOptions(lr=1e-3))``.

        A group that is not given is absent, except that :meth:`get` of a core group falls back to its defaults.
        """
        values = []
        for group in groups:
            for opt in options_of(type(group), (owners or {}).get(type(group), "core")):
                given = getattr(group, opt.field)
                source = Source.DEFAULT if given == opt.default else Source.COMMAND_LINE
                values.append((opt, Value(given, source, "Config.of")))
        return cls(values)

    def get(self, group: type[T]) -> T:
        """The options of one dataclass. Reading a field of the result marks that option as read.

        A group that nobody selected yields its defaults.
        """
        if group not in self._views:
            fields: dict[str, Any] = {}
            for field in dataclasses.fields(group):  # type: ignore[arg-type]
                if (group, field.name) in self._values:
                    fields[field.name] = self._values[group, field.name][1].value
            view = _tracked(group)(**fields)
            object.__setattr__(view, "_miles_config", self)
            self._views[group] = view
        return self._views[group]  # type: ignore[no-any-return]

    def peek(self, group: type[T]) -> T:
        """The options of one dataclass, without marking anything as read: for checks, which use no option."""
        names = [field.name for field in dataclasses.fields(group)]  # type: ignore[arg-type]
        found = {name: self._values[group, name][1].value for name in names if (group, name) in self._values}
        return group(**found)

    def untracked(self) -> Config:
        """A copy whose reads are its own, for checks by plugins."""
        return Config(self._values.values())

    def value(self, group: type, field: str) -> Value:
        """The value of one field with its origin; the default's when the group was not selected."""
        if (group, field) in self._values:
            return self._values[group, field][1]
        return Value(getattr(group(), field), Source.DEFAULT, "")

    def chosen(self, group: type, field: str) -> bool:
        """Whether the user set the field, by file, environment or command line."""
        return self.value(group, field).source in USER_SOURCES

    def replaced(self, group: type, **changes: Any) -> Config:
        """A copy with some fields derived by core, marked as such."""
        values = dict(self._values)
        options = {o.field: o for o in options_of(group, "core")}
        for field, value in changes.items():
            opt = values[group, field][0] if (group, field) in values else options[field]
            values[group, field] = (opt, Value(value, Source.DERIVED, "derived"))
        copy = Config(values.values())
        copy._read = self._read
        return copy

    def by_flag(self, flag: str) -> Any:
        """The value of the option with this flag, which is read by it; None when there is no such option."""
        for option, value in self._values.values():
            if option.flag == flag:
                self._read.add(flag)
                return value.value
        return None

    def items(self) -> list[tuple[Option, Value]]:
        """Every option with its value and origin, in declaration order."""
        return list(self._values.values())

    def reads(self) -> frozenset[str]:
        """Flags that this process read so far."""
        return frozenset(self._read)

    def unread(self, reads: Iterable[str] = ()) -> list[tuple[Option, Value]]:
        """Options that somebody set and that neither this process nor ``reads`` of others touched."""
        seen = self._read | set(reads)
        return [(o, v) for o, v in self.items() if v.source in USER_SOURCES and o.flag not in seen]

    def mark_read(self, group: type, field: str) -> None:
        """Record that ``group.field`` was read."""
        found = self._values.get((group, field))
        if found is not None:
            self._read.add(found[0].flag)

    def __getstate__(self) -> dict[str, Any]:
        return {"values": list(self._values.values())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["values"])  # type: ignore[misc]


_TRACKED: dict[type, type] = {}


def _tracked(group: type[T]) -> type[T]:
    """A subclass of an option dataclass that reports which of its fields are read."""
    if group in _TRACKED:
        return _TRACKED[group]
    names = frozenset(f.name for f in dataclasses.fields(group))  # type: ignore[arg-type]

    def read(self: Any, name: str) -> Any:
        if name in names:
            config = object.__getattribute__(self, "__dict__").get("_miles_config")
            if config is not None:
                config.mark_read(group, name)
        return object.__getattribute__(self, name)

    def reduce(self: Any) -> tuple[Any, ...]:
        # A pickled view is a plain instance: the process that unpickles it has no config to report to.
        return _plain, (group, {name: object.__getattribute__(self, name) for name in names})

    tracked = type(group.__name__, (group,), {"__getattribute__": read, "__reduce__": reduce, "__module__": group.__module__})
    _TRACKED[group] = tracked
    return tracked


def _plain(group: type, fields: dict[str, Any]) -> Any:
    return group(**fields)
