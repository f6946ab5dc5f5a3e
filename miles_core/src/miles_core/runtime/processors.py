"""How many CPUs this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""The CPU time that a container has, ``QUOTA PERIOD`` in microseconds, ``max`` for all of it."""


def usable_cpus(quota: Path = QUOTA) -> int:
    """The CPUs of this machine that the process may run on, no more than the container's share of time; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        time, period = quota.read_text(encoding="ascii").split()
        share = math.ceil(int(time) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return allowed
    return max(1, min(allowed, share))
