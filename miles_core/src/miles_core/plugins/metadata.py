"""Installed distributions, read into plain rows. The only file that knows importlib-metadata."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import importlib_metadata

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint, IDistribution

PREFIX = "miles."
CORE = "miles-core"
_SECTION = re.compile(r"^\s*\[\s*miles\.", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One entry point of a ``miles.*`` group.

    Attributes:
        group: such as ``miles.reward``.
        name: of the entry point.
        value: ``package.module`` or ``package.module:object``.
        distribution, version: who installed it.
        origin: ``wheel``, ``editable``, ``vcs``, ``directory`` or ``archive``.
        requires_core: the distribution's requirements on miles-core, as it wrote them.
        location: folder that holds the distribution's metadata.
    """

    group: str
    name: str
    value: str
    distribution: str
    version: str
    origin: str
    requires_core: tuple[str, ...]
    location: str


@dataclass(frozen=True)
class Broken:
    """A distribution whose metadata cannot be used, and why. Its entry points are not offered."""

    distribution: str
    location: str
    problem: str


@dataclass(frozen=True)
class Installed:
    """The identity of one installed distribution."""

    distribution: str
    version: str
    location: str


def normalise(distribution: str) -> str:
    """The name under which distributions are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def scan() -> tuple[list[Row], list[Broken]]:
    """Every entry point of every ``miles.*`` group, in one pass over the installed metadata. Imports no plugin, never raises.

    A distribution that an earlier folder of ``sys.path`` shadows is left out, as Python's import would leave it out.
    """
    rows: list[Row] = []
    broken: list[Broken] = []
    seen: dict[str, _Copy] = {}
    for copy in _copies(importlib_metadata.distributions()):
        first = seen.setdefault(copy.name, copy)
        if first is not copy:
            if first.folder == copy.folder and first.place != copy.place and (_offers(first.dist) or _offers(copy.dist)):
                broken.append(Broken(copy.name, copy.place, f"is installed twice in one folder; {first.place} is used"))
            continue
        try:
            if _offers(copy.dist):
                rows += _rows(copy.dist)
        except Exception as error:
            # Any damage to one distribution's metadata ends here: it becomes a report and hides nothing else.
            broken.append(Broken(copy.name, copy.place, f"its metadata cannot be read: {type(error).__name__}: {error}"))
    return rows, broken


def installed(distribution: str) -> Installed | None:
    """The distribution of that name that Python would use here, or None."""
    for copy in _copies(importlib_metadata.distributions(name=distribution)):
        try:
            return _identity(copy.dist)
        except (ValueError, OSError, KeyError):
            # A damaged copy cannot be named, and so never equals what a run was resolved with.
            return None
    return None


def entry_point(group: str, name: str, value: str) -> EntryPoint:
    """The entry point that stevedore loads."""
    return importlib_metadata.EntryPoint(name, value, group)


@dataclass(frozen=True)
class _Copy:
    """One metadata folder: ``place`` is its path, ``folder`` the one above it, ``name`` the distribution by its folder's name."""

    dist: IDistribution
    place: str
    folder: str
    name: str


def _copies(found: Iterable[IDistribution]) -> list[_Copy]:
    """Metadata folders in the order of ``sys.path``; in one folder the highest version is first, whatever the file system says."""
    copies = []
    rank: dict[str, int] = {}
    for dist in found:
        # The path of the metadata folder is not part of the public interface; the folder above it is, and does as a fallback.
        place = str(getattr(dist, "_path", None) or dist.locate_file(""))
        folder, stem = os.path.split(place)
        rank.setdefault(folder, len(rank))
        name, _, version = stem.rpartition(".")[0].partition("-")
        number = [-int(part) for part in re.findall(r"\d+", version)]
        copies.append((rank[folder], number, _Copy(dist, place, folder, normalise(name))))
    return [copy for _, _, copy in sorted(copies, key=lambda item: item[:2])]


def _offers(dist: IDistribution) -> bool:
    """Whether the distribution has entry points of miles, by a look at the text: parsing all of them would take longer."""
    text = _entry_points_text(dist)
    return text is not None and _SECTION.search(text) is not None


def _entry_points_text(dist: IDistribution) -> str | None:
    text = dist.read_text("entry_points.txt")
    if text is None:
        # read_text says None both for a file that is absent and for one that cannot be opened.
        path = getattr(dist, "_path", None)
        if path is not None and path.joinpath("entry_points.txt").exists():
            raise OSError("entry_points.txt cannot be opened")
    return text


def _identity(dist: IDistribution) -> Installed:
    metadata = dist.metadata
    name, version = metadata.get("Name"), metadata.get("Version")
    if not name:
        raise ValueError("it has no Name")
    if not version:
        raise ValueError("it has no Version")
    return Installed(str(name), str(version), str(dist.locate_file("")))


def _rows(dist: IDistribution) -> list[Row]:
    who = _identity(dist)
    origin = _origin(dist.read_text("direct_url.json"))
    requires = tuple(_requires_core(dist.requires or ()))
    return [
        Row(entry.group, entry.name, entry.value, who.distribution, who.version, origin, requires, who.location)
        for entry in dist.entry_points
        if entry.group.startswith(PREFIX)
    ]


def _requires_core(requirements: Iterable[str]) -> Iterator[str]:
    for requirement in requirements:
        name = re.match(r"\s*([A-Za-z0-9._-]+)", requirement)
        if name and normalise(name.group(1)) == CORE:
            yield requirement


def _origin(direct_url: str | None) -> str:
    """Where the distribution came from, by PEP 610."""
    if not direct_url:
        return "wheel"
    said = json.loads(direct_url)
    if "vcs_info" in said:
        return "vcs"
    if "dir_info" in said:
        return "editable" if said["dir_info"].get("editable") else "directory"
    return "archive"
