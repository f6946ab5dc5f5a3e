"""References to plugin implementations that travel to other processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PluginRef:
    """One implementation, resolvable in any process of the run by :func:`miles_core.plugins.create`.

    The receiving process refuses to go on when its own installed distribution differs.

    Attributes:
        kind: the entry-point group without ``miles.``: ``backend``, ``engine``, ``advantage``, ``loss``, ``reward``, ``filter``,
            ``middleware``, ``logger``, ``algo``, ``hooks`` or ``commands``; ``router`` and ``export``, which are no groups.
        name: as users type it.
        distribution, version: who installed it; for an ad-hoc dotted path ``distribution`` is empty.
        create: ``package.module:attribute`` of the factory.
        adapter: for a dotted path, the signature by which the function is adapted to the protocol of ``kind``.
        capabilities: of the record.
    """

    kind: str
    name: str
    distribution: str
    version: str
    create: str
    adapter: str | None = None
    capabilities: frozenset[str] = frozenset()
    extra: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)
