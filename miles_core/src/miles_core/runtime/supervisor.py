"""Waiting for the processes of a run without ever waiting for a dead one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from miles_core.errors import MilesError, RunError, UsageError
from miles_core.runtime import interruption
from miles_core.runtime.cluster import Cluster
from miles_core.runtime.identity import Failure, ProcessIdentity

POLL_SECONDS = 0.25
GRACE_SECONDS = 1.5
LOG_LINES = 15
LOST = object()
"""Stands for the result of a call to a process that was replaced, or failed and will be."""


@dataclass
class Member:
    """A process under supervision.

    Attributes:
        sentinel: a call that ends when the process does, or with a text when it can go on no more.
        lost: told why it ended, of a process that is replaced; without it the run ends with the process.
        peers: the other parts of its engine, which end with it.
    """

    identity: ProcessIdentity
    actor: Any
    sentinel: Any
    pid: int = 0
    lost: Callable[[str], None] | None = None
    peers: list[Member] = field(default_factory=list)


@dataclass
class Supervisor:
    """Every wait of the driver goes through here: a process that dies or raises ends the wait with one error."""

    cluster: Cluster
    run_dir: Path
    members: list[Member] = field(default_factory=list)
    attendants: list[Callable[[], None]] = field(default_factory=list)
    """Called a few times a second while the driver waits for anything."""
    _adopted: float = 0.0

    def watch(self, identity: ProcessIdentity, actor: Any) -> Member:
        """Take a process under supervision."""
        member = Member(identity, actor, actor.sentinel.remote())
        self.members.append(member)
        return member

    def watch_parts(self, parts: Sequence[tuple[ProcessIdentity, Any]]) -> list[Member]:
        """Take the processes of one engine under supervision."""
        members = [self.watch(identity, actor) for identity, actor in parts]
        for member in members:
            member.peers = [other for other in members if other is not member]
        return members

    def dismiss(self, member: Member) -> None:
        """Supervise a process no more."""
        if member in self.members:
            self.members.remove(member)

    def learn_pids(self, timeout: float = 60.0) -> None:
        """Ask every process for its id, so that errors can name it."""
        pids = self.wait([m.actor.pid.remote() for m in self.members], "processes to start", timeout)
        for member, pid in zip(self.members, pids, strict=True):
            member.pid = pid

    def wait(
        self,
        refs: Sequence[Any],
        what: str,
        timeout: float | None = None,
        poll: Callable[[], None] | None = None,
        losing: Callable[[int, str], None] | None = None,
    ) -> list[Any]:
        """Results of ``refs`` in order; :data:`LOST` for a call to a process that may be lost, and died or failed.

        Args:
            what: what is waited for, for the error.
            timeout: seconds; None waits as long as every process lives.
            poll: called a few times a second while waiting.
            losing: told of the number of each call that was lost, and why; without it a failure ends the run.

        Raises:
            RunError: a process died (M481), raised (M482), Ray broke (M483), or the timeout passed (M484).
        """
        pending = list(refs)
        lost: set[int] = set()
        started = time.monotonic()
        while pending:
            for ref in self._look(pending):
                pending.remove(ref)
                try:
                    self._check(ref, raw=losing is not None)
                except Exception as error:
                    if losing is None:
                        raise
                    lost.add(refs.index(ref))
                    losing(refs.index(ref), first_line(error))
            self.check()
            if poll is not None and pending:
                poll()
            if timeout is not None and pending and time.monotonic() - started > timeout:
                raise RunError(
                    "M484",
                    f"waited {timeout:.0f} s for {what}",
                    owner="miles-core",
                    why=f"{len(pending)} of {len(refs)} answers are missing",
                    fix=f"see the logs in {self.run_dir / 'logs'}",
                )
        return [LOST if number in lost else ray.get(ref) for number, ref in enumerate(refs)]

    def until(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        """Wait until something holds.

        Raises:
            RunError: as :meth:`wait`.
        """
        started = time.monotonic()
        while not condition():
            self._look(())
            self.check()
            if time.monotonic() - started > timeout:
                why, fix = "it does not come about", f"see the logs in {self.run_dir / 'logs'}"
                raise RunError("M484", f"waited {timeout:.0f} s for {what}", owner="miles-core", why=why, fix=fix)

    def ended(self, refs: Sequence[Any]) -> bool:
        """Whether all calls have ended, without waiting.

        Raises:
            RunError: one failed, as :meth:`wait`.
        """
        ready, pending = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in ready:
            self._check(ref)
        return not pending

    def _look(self, pending: Sequence[Any]) -> list[Any]:
        """Those of ``pending`` that have ended, after a moment at most; a death ends the run, or is told to who replaces."""
        by_sentinel = {m.sentinel: m for m in self.members}
        ready, _ = ray.wait([*pending, *by_sentinel], num_returns=1, timeout=POLL_SECONDS)
        for ref in ready:
            member = by_sentinel.get(ref)
            if member is not None:
                if member.lost is None:
                    raise self._died(member)
                self.dismiss(member)
                member.lost(_reason(member, None))
        return [ref for ref in ready if ref not in by_sentinel]

    def check(self) -> None:
        """Raise when Ray itself is broken, or the reaper, or the user wants an end; look for new child processes now and then."""
        interruption.check()
        error = self._system_death()
        if error is not None:
            raise error
        for attend in self.attendants:
            attend()
        if time.monotonic() - self._adopted > 1.0:
            self._adopted = time.monotonic()
            self.cluster.adopt()

    def _system_death(self) -> RunError | None:
        dead = self.cluster.dead_system_process()
        if dead is None:
            return None
        whose = "the" if dead == "reaper" else "Ray's"
        return RunError(
            "M483",
            f"{whose} process {dead} (pid {self.cluster.system[dead].pid}) died",
            owner="miles-core" if dead == "reaper" else f"ray {ray.__version__}",
            why="it was killed or crashed",
            fix="start the run again with --load to go on from the last saved state",
        )

    def _check(self, ref: Any, *, raw: bool = False) -> None:
        try:
            ray.get(ref)
        except ray.exceptions.RayActorError as error:
            if raw:
                raise
            member = self._member_of(error)
            raise self._died(member, error) from error
        except Exception as error:
            if raw:
                raise
            raise self._raised(error) from error

    def _member_of(self, error: Any) -> Member | None:
        actor_id = getattr(error, "actor_id", None)
        for member in self.members:
            if actor_id is not None and member.actor._actor_id.hex() == actor_id:
                return member
        return None

    def _first_failure(self) -> Failure | None:
        """The earliest exception that any process recorded. Peers of the first one often fail within a moment."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.1)
        found = [f for m in self.members if (f := Failure.read(m.identity.failure_file)) is not None]
        return min(found, key=lambda f: f.time, default=None)

    def _died(self, member: Member | None, error: BaseException | None = None) -> MilesError:
        # A process that raised takes its peers down: what it recorded is the cause, the death a consequence.
        failure = self._first_failure()
        system = self._system_death()
        if system is not None:
            # Ray takes the run's processes along, and its news of their death can come first.
            return system
        name = member.identity.name if member else "a process"
        if failure is not None and (member is None or failure.process == member.identity.name):
            return self._from_failure(failure)
        pid = f" (pid {member.pid})" if member and member.pid else ""
        tail = self._log_tail(member.identity) if member else ""
        return RunError(
            "M481",
            f"process {name}{pid} died",
            owner="miles-core",
            why="; ".join([_reason(member, error), *(_ends(member) if member else ())]),
            fix=f"see {member.identity.log if member else self.run_dir / 'logs'}; go on from the last saved state with --load",
            traceback=tail,
            process=name,
        )

    def _raised(self, error: BaseException) -> MilesError:
        failure = self._first_failure()
        system = self._system_death()
        if system is not None:
            return system
        # An exception is often the echo of a killed peer (connection refused, collective aborted): the death is the cause.
        gone, _ = ray.wait([m.sentinel for m in self.members], num_returns=1, timeout=0)
        for member in self.members:
            if member.sentinel in gone and not member.identity.failure_file.exists():
                return self._died(member)
        if failure is not None:
            return self._from_failure(failure, error)
        return RunError("M482", f"{type(error).__name__}: {error}", owner="miles-core", fix=f"see {self.run_dir / 'logs'}")

    def _from_failure(self, failure: Failure, error: BaseException | None = None) -> MilesError:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, MilesError) and not failure.trace:
            # The user's mistakes that only a process can find (a prompt that the template refuses) stay the user's mistakes.
            kind = UsageError if isinstance(cause, UsageError) else RunError
            return kind(cause.code, cause.what, owner=cause.owner, why=cause.why, fix=cause.fix, process=failure.process)
        return RunError(
            "M482",
            f"process {failure.process} (pid {failure.pid}) failed",
            owner="miles-core",
            why=failure.message,
            fix=f"see {self.run_dir / 'logs' / (failure.process + '.log')}",
            traceback=failure.trace,
            process=failure.process,
        )

    def _log_tail(self, identity: ProcessIdentity) -> str:
        try:
            lines = identity.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-LOG_LINES:])


def first_line(error: BaseException) -> str:
    """What an exception of a call says of its cause."""
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process ended"
    cause = getattr(error, "cause", None) or error
    return cause.line() if isinstance(cause, MilesError) else f"{type(cause).__name__}: {cause}".splitlines()[0]


def _ends(member: Member) -> list[str]:
    """What ended at about the same time of the engine that a process is a part of: either may be the cause."""
    if not member.peers:
        return []
    gone, _ = ray.wait([peer.sentinel for peer in member.peers], num_returns=len(member.peers), timeout=0)
    return [f"{peer.identity.name} ended, too: {_reason(peer, None)}" for peer in member.peers if peer.sentinel in gone]


def _reason(member: Member | None, error: BaseException | None) -> str:
    """Why a process died, as far as Ray knows."""
    if error is None and member is not None:
        try:
            return str(ray.get(member.sentinel, timeout=0))
        except ray.exceptions.RayError as caught:
            error = caught
    text = str(error or "").lower()
    # Ray's news of any death speaks of memory, as one of the causes that there can be.
    if "low on memory" in text:
        return "Ray ended it because the machine ran low on memory"
    return "it was killed from outside, ran out of memory, or crashed"
