"""CPUs next to a device: Linux says which NUMA node a PCI slot belongs to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

SYS = Path("/sys")


def node_of_pci(domain: int, bus: int, device: int, sys: Path = SYS) -> int | None:
    """The NUMA node of a PCI slot; None when the machine has no nodes or does not tell."""
    file = sys / "bus/pci/devices" / f"{domain:04x}:{bus:02x}:{device:02x}.0" / "numa_node"
    try:
        node = int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def cpus_of_node(node: int, sys: Path = SYS) -> frozenset[int]:
    """The CPUs of a NUMA node; empty when the machine does not tell."""
    try:
        text = (sys / f"devices/system/node/node{node}/cpulist").read_text(encoding="ascii").strip()
    except OSError:
        return frozenset()
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def pin(cpus: Collection[int]) -> tuple[int, ...]:
    """Keep every thread of this process on those of ``cpus`` that it may use; gives them, none when nothing was done."""
    if not hasattr(os, "sched_setaffinity"):
        return ()
    usable = os.sched_getaffinity(0) & set(cpus)
    if not usable:
        return ()
    for thread in Path("/proc/self/task").iterdir():
        # A thread may end between listing and pinning.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), usable)
    return tuple(sorted(usable))
