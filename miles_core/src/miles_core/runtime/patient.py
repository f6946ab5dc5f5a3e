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
        step: the call that ends its state.
        since: when it came into its state.
        beat, asked: the question for a sign of life that is open, and when it was asked, or the next one is due.
        fell: when it went down.
        failed: how often in a row it did not come up.
    """

    rank: int
    member: Member
    url: str
    node: str
    state: State = State.UP
    step: Any = None
    since: float = 0.0
    beat: Any = None
    asked: float = 0.0
    fell: float = 0.0
    failed: int = 0
    why: str = ""

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
