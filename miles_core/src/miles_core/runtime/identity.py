"""Who a process of the run is, where it logs, and how it reports its first failure."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import functools
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from miles_core.errors import MilesError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ProcessIdentity:
    """A process of the run.

    Attributes:
        role: ``trainer``, ``critic``, ``engine``, ``router`` or ``rollout``.
        rank: its number among its kind.
        part: of an engine over several nodes, the number of the node; the first is the engine itself.
        run_dir: the run folder; the process logs to ``logs/<role>-<rank>.log`` in it.
        environment: variables to set before anything heavy is imported.
        search_path: folders of the driver's ``PYTHONPATH``.
    """

    role: str
    rank: int
    run_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    search_path: tuple[str, ...] = field(
        default_factory=lambda: tuple(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    )
    part: int = 0

    @property
    def name(self) -> str:
        """``trainer-0`` and the like; ``engine-0-node-1`` for the second part of an engine."""
        return f"{self.role}-{self.rank}" + (f"-node-{self.part}" if self.part else "")

    @property
    def log(self) -> Path:
        """The process's log file."""
        return self.run_dir / "logs" / f"{self.name}.log"

    @property
    def failure_file(self) -> Path:
        """Where the process leaves its first failure."""
        return self.run_dir / "logs" / f"{self.name}.failure.json"

    def assume(self) -> None:
        """Make the calling process this one: environment, log file, crash tracebacks."""
        os.environ.update(self.environment)
        # A process of a cluster that was there before the run has that cluster's search path, not the driver's.
        sys.path[:0] = [path for path in self.search_path if path not in sys.path]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            for target in (sys.stdout, sys.stderr):
                target.flush()
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(stream.fileno(), target.fileno())
        faulthandler.enable()


@dataclass(frozen=True)
class Failure:
    """The first exception that a process raised."""

    process: str
    pid: int
    time: float
    message: str
    trace: str

    @classmethod
    def read(cls, path: Path) -> Failure | None:
        """A failure that a process left, or None."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def record_failure(identity: ProcessIdentity, error: BaseException) -> None:
    """Leave ``error`` for the supervisor, unless the process left one already."""
    if identity.failure_file.exists():
        return
    message = error.line() if isinstance(error, MilesError) else f"{type(error).__name__}: {error}"
    trace = "" if isinstance(error, MilesError) else "".join(traceback.format_exception(error))
    failure = {"process": identity.name, "pid": os.getpid(), "time": time.time(), "message": message, "trace": trace}
    partial = identity.failure_file.with_suffix(".partial")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(failure), encoding="utf-8")
        partial.replace(identity.failure_file)


def recorded(method: F) -> F:
    """Have an exception that leaves a method of a process recorded with its time and traceback."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            record_failure(self.identity, error)
            raise

    return call  # type: ignore[return-value]


def recorded_async(method: F) -> F:
    """:func:`recorded` for a coroutine method."""

    @functools.wraps(method)
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await method(self, *args, **kwargs)
        except BaseException as error:
            record_failure(self.identity, error)
            raise

    return call  # type: ignore[return-value]


def meeting_address(spans_nodes: bool) -> str:
    """Where the ranks of a model meet: loopback within one node, unless ``MILES_HOST_IP`` says something else."""
    return host_address() if spans_nodes or os.environ.get("MILES_HOST_IP") else "127.0.0.1"


def host_address() -> str:
    """The address that other nodes reach this process at: ``MILES_HOST_IP``, else what Ray uses for this node."""
    override = os.environ.get("MILES_HOST_IP")
    if override:
        return override
    import ray

    return str(ray.util.get_node_ip_address())


def free_ports(host: str, count: int) -> int:
    """The first of ``count`` TCP ports in a row that were free a moment ago.

    Raises:
        OSError: there is no such row, or ``host`` is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        first = free_port(host)
        if first + count > 65536:
            continue
        try:
            with contextlib.ExitStack() as probes:
                for port in range(first, first + count):
                    probes.enter_context(socket.socket(family, socket.SOCK_STREAM)).bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return first


def free_port(host: str = "") -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
