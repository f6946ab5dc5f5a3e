"""An engine as its medic sees it, and the end of its processes."""

from __future__ import annotations

import contextlib
import enum
from dataclasses import dataclass
from typing import Any

import psutil

from miles_core.runtime.identity import ProcessIdentity
from miles_core.runtime.supervisor import Member

END_SECONDS = 10.0


class State(enum.Enum):
    """Of an engine."""

    UP = "serves"
    DOWN = "has ended"
    STARTING = "starts"
    BARE = "has started, without the weights that are served"
    LOADING = "takes them"
    JOINING = "is told to the router"


@dataclass
class Patient:
    """An engine, as the medic sees it.

    Attributes:
        members, nodes: its processes, one for each node that it is on, and those nodes.
        step: the calls that end its state.
        since: when it came into its state.
        beat, asked: the questions for a sign of life that are open, one to each process, and when they were
            asked, or the next are due.
        fell: when it went down.
        failed: how often in a row it did not come up.
    """

    rank: int
    members: list[Member]
    url: str
    nodes: list[str]
    state: State = State.UP
    step: Any = None
    since: float = 0.0
    beat: tuple[Any, ...] = ()
    asked: float = 0.0
    fell: float = 0.0
    failed: int = 0
    why: str = ""

    @property
    def member(self) -> Member:
        """The process that others know as the engine."""
        return self.members[0]

    @property
    def name(self) -> str:
        """``engine-0`` and the like."""
        return self.member.identity.name


def end_tree(pid: int, identity: ProcessIdentity) -> None:
    """Kill a process of a run on this machine, and those that it has started, unless its number is another's by now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if "EngineProcess" not in " ".join(process.cmdline()):
            return
        family = [*process.children(recursive=True), process]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=END_SECONDS)
