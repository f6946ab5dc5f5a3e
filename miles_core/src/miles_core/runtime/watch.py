"""What every process of a run has in common: it says who it is, what it read, and when it dies."""

from __future__ import annotations

import os
import threading

import ray

from miles_core.options import Config
from miles_core.runtime.identity import ProcessIdentity

GROUPS = {"watch": 2, "files": 1}
"""Concurrency groups of the actors: the watch methods answer, and files are written, while work runs."""


class Watched:
    """Base of the actors that do blocking work. ``config`` is set by the subclass."""

    config: Config

    def __init__(self, identity: ProcessIdentity) -> None:
        self.identity = identity
        identity.assume()

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    @ray.method(concurrency_group="watch")  # type: ignore[untyped-decorator]
    def sentinel(self) -> None:
        """Never returns: the pending call fails when the process dies, which is how the supervisor learns of it."""
        threading.Event().wait()

    def reads(self) -> frozenset[str]:
        """Flags that this process read."""
        return self.config.reads()
