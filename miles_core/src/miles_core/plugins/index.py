"""Tier 0: which plugins are installed, from metadata alone. Importing this module or scanning imports no plugin."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from miles_core.errors import PluginError
from miles_core.plugins import metadata
from miles_core.plugins.metadata import Broken, Row, normalise
from miles_core.version import __version__

KINDS = (
    "backend",
    "engine",
    "advantage",
    "loss",
    "reward",
    "filter",
    "middleware",
    "logger",
    "algo",
    "hooks",
    "commands",
)
"""The entry-point groups without ``miles.``, in the order in which they are listed."""

FIRST_PARTY = {
    "advantage": ("miles-algos",),
    "algo": ("miles-algos",),
    "backend": ("miles-fsdp", "miles-megatron"),
    "engine": ("miles-transformers", "miles-sglang"),
    "filter": ("miles-algos",),
    "logger": ("miles-loggers",),
    "loss": ("miles-algos",),
    "reward": ("miles-rewards",),
}
"""Names for advice only: which distributions of the project offer a kind."""


@dataclass(frozen=True)
class Entry:
    """One installed implementation. ``requires_core`` are its distribution's requirements on miles-core."""

    kind: str
    name: str
    value: str
    distribution: str
    version: str
    origin: str
    requires_core: tuple[str, ...] = ()
    location: str = ""

    @property
    def group(self) -> str:
        """The entry-point group."""
        return metadata.PREFIX + self.kind

    @property
    def owner(self) -> str:
        """Distribution and version, as error messages name them."""
        return f"{self.distribution} {self.version}"

    @property
    def qualified(self) -> str:
        """``distribution:name``, which is never ambiguous."""
        return f"{self.distribution}:{self.name}"

    def incompatibility(self) -> str:
        """Why this version of miles-core does not do, or an empty string. Reads metadata only."""
        from packaging.requirements import InvalidRequirement, Requirement

        for text in self.requires_core:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                return f"its requirement on miles-core cannot be read: {text!r}"
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if not requirement.specifier.contains(__version__, prereleases=True):
                return f"it needs miles-core{requirement.specifier}, and this is {__version__}"
        return ""


@dataclass(frozen=True)
class Problem:
    """Something wrong with what is installed, found without importing it. ``owner`` is a distribution with version, or a folder."""

    owner: str
    what: str
    fix: str

    def line(self) -> str:
        """The problem on one line."""
        return " ".join(f"{self.owner}: {self.what}. Do: {self.fix}".split())


class PluginIndex:
    """The entry points of all eleven groups, with what is wrong with them.

    Args:
        rows: entry points of ``miles.*`` groups, also misspelt ones.
        broken: distributions whose metadata cannot be read.
    """

    def __init__(self, rows: Iterable[Row], broken: Iterable[Broken] = ()) -> None:
        self.broken = tuple(broken)
        self.misplaced: tuple[Row, ...] = ()
        self.entries: tuple[Entry, ...] = ()
        entries, misplaced = [], []
        for row in rows:
            kind = row.group.removeprefix(metadata.PREFIX)
            if kind not in KINDS or not _legal(row.name):
                misplaced.append(row)
                continue
            entries.append(
                Entry(kind, row.name, row.value, row.distribution, row.version, row.origin, row.requires_core, row.location)
            )
        self.entries = tuple(sorted(entries, key=lambda e: (KINDS.index(e.kind), e.name, normalise(e.distribution))))
        self.misplaced = tuple(misplaced)

    @classmethod
    def scan(cls) -> PluginIndex:
        """The index of this environment, from one pass over the installed metadata."""
        return cls(*metadata.scan())

    def of_kind(self, kind: str) -> list[Entry]:
        """The entries of one kind, by name."""
        return [entry for entry in self.entries if entry.kind == kind]

    def candidates(self, kind: str, name: str) -> list[Entry]:
        """The entries that ``name`` or ``distribution:name`` can mean.

        Raises:
            PluginError: M101, there is none.
            ValueError: ``kind`` is not one of :data:`KINDS`.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not a kind of plugin; kinds are {', '.join(KINDS)}")
        distribution, _, short = name.rpartition(":")
        found = [
            entry
            for entry in self.of_kind(kind)
            if entry.name == short and (not distribution or normalise(entry.distribution) == normalise(distribution))
        ]
        if not found:
            raise self._unknown(kind, name)
        return found

    def find(self, kind: str, name: str) -> Entry:
        """The one entry of that name.

        Raises:
            PluginError: M101, there is none; M102, more than one distribution offers it.
        """
        found = self.candidates(kind, name)
        if len(found) > 1:
            raise conflict(found)
        return found[0]

    def conflicts(self) -> list[list[Entry]]:
        """Entries that share kind and name, grouped."""
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault((entry.kind, entry.name), []).append(entry)
        return [group for group in groups.values() if len(group) > 1]

    def problems(self) -> list[Problem]:
        """Everything wrong that metadata shows: damage, misspelt groups, illegal names, conflicts, incompatible versions."""
        found = [
            Problem(b.distribution, f"{b.problem} ({b.location})", f"reinstall it: pip install --force-reinstall {b.distribution}")
            for b in self.broken
        ]
        for row in self.misplaced:
            owner = f"{row.distribution} {row.version}"
            kind = row.group.removeprefix(metadata.PREFIX)
            if kind in KINDS:
                fix = "rename it; a name has no spaces, colons or equals signs"
                found.append(Problem(owner, f"entry point {row.name!r} of group {row.group} has an illegal name", fix))
            else:
                near = closest(kind, KINDS)
                hint = f"did you mean {metadata.PREFIX}{near}?" if near else f"groups are {', '.join('miles.' + k for k in KINDS)}"
                found.append(Problem(owner, f"{row.name!r} is in the group {row.group}, which miles does not know", hint))
        for group in self.conflicts():
            error = conflict(group)
            found.append(Problem(error.owner, error.what, error.fix))
        for distribution in {entry.distribution: entry for entry in self.entries}.values():
            if why := distribution.incompatibility():
                found.append(Problem(distribution.owner, why, f"pip install --upgrade {distribution.distribution} miles-core"))
        return found

    def _unknown(self, kind: str, name: str) -> PluginError:
        names = sorted({entry.name for entry in self.of_kind(kind)})
        _, _, short = name.rpartition(":")
        known = f"installed are {', '.join(names)}" if names else f"no {kind} plugin is installed"
        have = {normalise(entry.distribution) for entry in self.entries}
        offers = [dist for dist in FIRST_PARTY.get(kind, ()) if dist not in have]
        offers = [dist for dist in offers if dist == f"miles-{short}"] or offers
        install = " or ".join(f"pip install {dist}" for dist in offers) or "pip install the distribution that has it"
        fix = f"see miles plugins list --kind {kind}, or install the plugin ({install})"
        stray = next((row for row in self.misplaced if row.name == short), None)
        elsewhere = sorted({entry.kind for entry in self.entries if entry.name == short and entry.kind != kind})
        same = [entry.qualified for entry in self.of_kind(kind) if entry.name == short]
        near = closest(short, names)
        if same:
            fix = f"did you mean {' or '.join(same)}?"
        elif stray is not None:
            near_kind = closest(stray.group.removeprefix(metadata.PREFIX), KINDS) or kind
            fix = (
                f"tell the author of {stray.distribution}: it offers {short!r} under {stray.group}, which must be miles.{near_kind}"
            )
        elif near:
            fix = f"did you mean {near!r}? Otherwise {fix}"
        elif elsewhere:
            known = f"{known}; {short!r} is a plugin of kind {' and '.join(elsewhere)}"
        elif any(normalise(b.distribution) == normalise(name.rpartition(":")[0]) for b in self.broken):
            fix = "miles plugins doctor: that distribution's metadata is damaged"
        return PluginError("M101", f"there is no {kind} plugin {name!r}", why=known, fix=fix, kind=kind, name=name)


def conflict(entries: list[Entry]) -> PluginError:
    """M102 for entries that share kind and name."""
    first = entries[0]
    owners = " and ".join(entry.owner for entry in entries)
    if len({normalise(entry.distribution) for entry in entries}) == 1:
        fix = f"tell the author of {first.distribution}: a name may stand in miles.{first.kind} once"
    else:
        fix = f"write {' or '.join(entry.qualified for entry in entries)}, or uninstall one"
    what = f"the {first.kind} plugin {first.name!r} is offered {len(entries)} times"
    return PluginError(
        "M102", what, owner=owners, fix=fix, kind=first.kind, name=first.name, distributions=[e.distribution for e in entries]
    )


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name that somebody who typed ``name`` most likely meant, or None."""
    lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower().replace("_", "-"), [known.replace("_", "-") for known in lower], n=1, cutoff=0.6)
    if not near:
        return None
    return next(known for key, known in lower.items() if key.replace("_", "-") == near[0])


def _legal(name: str) -> bool:
    return bool(name) and not any(character.isspace() or character in ":=" for character in name)
