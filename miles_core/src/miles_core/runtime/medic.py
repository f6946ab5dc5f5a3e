"""Engines that die or hang are started again in their places, and take no requests before they have the weights that are served."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from miles_core.config import FaultToleranceOptions
from miles_core.config.fault_tolerance import RESTART_SECONDS
from miles_core.errors import RunError
from miles_core.runtime.engine_places import EnginePlaces
from miles_core.runtime.patient import Patient, State, end_tree
from miles_core.runtime.supervisor import Member, Supervisor, first_line
from miles_core.weights.kept import FOLDER, is_kept

STARTS = 5
"""Times in a row that an engine may fail to come up."""
PAUSE = 2.0
"""Seconds before it is tried again."""
SLACK = 2.0
"""Seconds beyond its timeout that the answer to a question may take: an engine that is stopped says nothing at all."""
KEPT_SECONDS = 600.0


@dataclass
class Medic:
    """Looks after the engines of a run. The driver has it look at them a few times a second while it waits for anything.

    An engine that has ended, gives no sign of life in time, or fails in a call is taken from the router, which gives its requests
    to others; it is started again in its place, takes the weights that are served from where the publishing rank keeps them, and
    comes back to the router. While weights are published it waits for them instead.

    Args:
        engines: the actors, which are replaced in place.
        parts: all actors of each engine, the first is that of ``engines``; replaced in place, too.
        router: the actor of core's router.
        trains: whether weights are published at all; the checkpoint's are served otherwise.

    Attributes:
        may_start: off while trainers have the devices of the engines.
        version: that is served; None before the first publish.
        restarts: how many engines came back.
        tell: takes a line for the user.
        moved: called when an engine is in another process than before.
    """

    places: EnginePlaces
    supervisor: Supervisor
    engines: list[Any]
    router: Any
    options: FaultToleranceOptions
    trains: bool
    parts: list[list[Any]]
    patients: list[Patient] = field(default_factory=list)
    may_start: bool = True
    version: int | None = None
    restarts: int = 0
    tell: Callable[[str], None] = print
    moved: Callable[[], None] = lambda: None
    _publishing: bool = False
    _closed: bool = False

    def admit(self, members: list[list[Member]], urls: list[str]) -> None:
        """Look after engines that have started, each with the processes of all its parts."""
        for rank, (parts, url) in enumerate(zip(members, urls, strict=True)):
            nodes = self.supervisor.wait([member.actor.node.remote() for member in parts], "engines", 60)
            patient = Patient(rank, parts, url, nodes)
            self._adopt(patient)
            self.patients.append(patient)
            self._enter(patient, State.UP)
            patient.asked = patient.since + self.options.rollout_health_check_first_wait
        self.supervisor.attendants.append(self.look)

    @property
    def down(self) -> list[int]:
        """Engines that have ended and were not started again."""
        return [patient.rank for patient in self.patients if patient.state is State.DOWN]

    @property
    def bare(self) -> list[int]:
        """Engines that have started and wait for weights."""
        return [patient.rank for patient in self.patients if patient.state is State.BARE]

    @property
    def reachable(self) -> list[int]:
        """Engines that can be called."""
        return [patient.rank for patient in self.patients if patient.state in (State.UP, State.BARE)]

    def look(self) -> None:
        """Look at every engine, without waiting.

        Raises:
            RunError: an engine does not come up again (M531).
        """
        if self._closed:
            return
        for patient in self.patients:
            if patient.state is not State.DOWN and all(member.pid for member in patient.members):
                self._listen(patient)
            if patient.state is State.BARE:
                self._dress(patient)
            elif patient.state is State.DOWN:
                self._start(patient)
            elif patient.state is not State.UP:
                self._proceed(patient)

    def replace(self, rank: int, why: str, actor: Any = None) -> None:
        """An engine is of no use any more: end it, and start it again, unless another than ``actor`` is in its place by now."""
        patient = self.patients[rank]
        if patient.state is not State.DOWN and (actor is None or actor is self.engines[rank]):
            self._fell(patient, why)

    def settle(self) -> None:
        """Wait until every engine that may be started serves."""
        if self.may_start:
            done = {State.UP} if self.version is not None or not self.trains else {State.UP, State.BARE}
            self._until(done, "engines to be started again")

    def prepare(self) -> None:
        """Weights are about to be published: wait until every engine can take them. One that starts from now on waits for them."""
        self._publishing = True
        self._until({State.UP, State.BARE}, "engines to be started again")

    def published(self, version: int) -> None:
        """Every engine that can be called has these weights; those that were waiting come back to the router."""
        self.version, self._publishing = version, False
        for rank in self.bare:
            self._join(self.patients[rank])
        self._until(set(State) - {State.JOINING}, "the router")

    def blame(self, errors: list[RunError], engines: list[Any]) -> bool:
        """Publishing to these engines failed: replace those that made it fail; returns whether there are any."""
        names = {error.data.get("engine") for error in errors}
        for patient in self.patients:
            if patient.name in names:
                self.replace(patient.rank, "it failed to take weights", engines[patient.rank])
        timeout = self.options.rollout_health_check_timeout
        asked = {self.engines[rank].heartbeat.remote(timeout): rank for rank in self.reachable}
        if asked:
            ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=timeout + SLACK)
            for call in [*(each for each in ready if _failure(each) is not None), *silent]:
                self.replace(asked[call], "it gave no sign of life when it was to take weights")
        return engines != self.engines or any(patient.state is not State.UP for patient in self.patients)

    def close(self) -> None:
        """The run ends: engines that end are none of its business."""
        self._closed = True
        for patient in self.patients:
            if patient.state is not State.UP:
                self._end(patient)

    def _until(self, states: set[State], what: str) -> None:
        self.supervisor.until(lambda: all(patient.state in states for patient in self.patients), what, RESTART_SECONDS)

    def _enter(self, patient: Patient, state: State, step: Any = None) -> None:
        patient.state, patient.step, patient.since = state, step, time.monotonic()
        if state is State.UP:
            patient.failed = 0

    def _listen(self, patient: Patient) -> None:
        """Ask for a sign of life when it is time, and see whether the last question was answered."""
        now, timeout = time.monotonic(), self.options.rollout_health_check_timeout
        if not patient.beat:
            if now >= patient.asked:
                # An engine that has not started has no health yet, but its processes have to be there.
                starts, actors = patient.state is State.STARTING, self.parts[patient.rank]
                patient.beat = tuple(actor.pid.remote() if starts else actor.heartbeat.remote(timeout) for actor in actors)
                patient.asked = now
            return
        ready, silent = ray.wait(list(patient.beat), num_returns=len(patient.beat), timeout=0)
        if silent:
            if now > patient.asked + timeout + SLACK:
                self.replace(patient.rank, f"it gave no sign of life for {timeout:g} s")
            return
        try:
            ray.get(ready)
        except ray.exceptions.RayActorError:
            return  # the supervisor tells why
        except Exception as error:
            self.replace(patient.rank, first_line(error))
            return
        patient.beat, patient.asked = (), now + self.options.rollout_health_check_interval

    def _fell(self, patient: Patient, why: str) -> None:
        """An engine has ended, or a part of it has, or is ended now: with all its parts."""
        if self._closed:
            return
        for member in patient.members:
            self.supervisor.dismiss(member)
        if patient.state in (State.UP, State.BARE, State.JOINING):
            patient.fell = time.monotonic()
            self.tell(f"{patient.name} is lost: {why}; it is started again")
        else:
            patient.failed += 1
        patient.why = why
        self.router.call.remote("remove_worker", patient.url)
        self._end(patient)
        self._enter(patient, State.DOWN)
        if patient.failed >= STARTS:
            raise RunError(
                "M531",
                f"{patient.name} does not come up again",
                owner="miles-core",
                why=f"{patient.failed} starts failed, the last one so: {why}",
                fix=f"see {patient.member.identity.log}; go on from the last saved state with --load",
                process=patient.name,
            )

    def _start(self, patient: Patient) -> None:
        if not self.may_start or (patient.failed and time.monotonic() - patient.since < PAUSE):
            return
        # What the process that is gone left there would pass for the cause of the next error of the run.
        for member in patient.members:
            member.identity.failure_file.unlink(missing_ok=True)
        patient.members = self.supervisor.watch_parts(self.places.processes(patient.rank))
        self._adopt(patient)
        actors = self.parts[patient.rank] = [member.actor for member in patient.members]
        self.engines[patient.rank] = actors[0]
        # In this order: the calls of one actor are answered one after the other.
        learned = [*(actor.pid.remote() for actor in actors), *(actor.node.remote() for actor in actors)]
        self._enter(patient, State.STARTING, (*learned, *self.places.start(patient.rank, actors)))
        patient.beat, patient.asked = (), patient.since

    def _adopt(self, patient: Patient) -> None:
        """Be told of the end of any of an engine's processes."""
        for member in patient.members:
            whose = f"{member.identity.name}: " if member.identity.part else ""
            member.lost = lambda why, whose=whose: self._fell(patient, whose + why)

    def _learn(self, patient: Patient, calls: list[Any], ready: list[Any]) -> None:
        """The ids of the processes that have said them."""
        for member, call in zip(patient.members, calls, strict=False):
            if call in ready:
                member.pid = ray.get(call)

    def _dress(self, patient: Patient) -> None:
        """Give an engine that has started the weights that are served, as soon as they can be had."""
        if self._publishing:
            return
        if self.version is None:
            if not self.trains:
                self._join(patient)
            return
        folder = self.places.plan.run_dir / FOLDER
        if is_kept(folder, self.version):
            self._enter(patient, State.LOADING, (self.engines[patient.rank].take.remote(folder, self.version),))
        elif time.monotonic() - patient.since > KEPT_SECONDS:
            raise RunError(
                "M532",
                f"there are no weights of version {self.version} for {patient.name} in {folder}",
                owner="miles-core",
                why=f"they were not written within {KEPT_SECONDS:.0f} s",
                fix="see that the run folder's disk has room for two copies of the model, and is shared by all machines",
            )

    def _join(self, patient: Patient) -> None:
        self._enter(patient, State.JOINING, (self.router.call.remote("add_worker", patient.url),))

    def _proceed(self, patient: Patient) -> None:
        """See whether the calls of a state have ended."""
        calls = list(patient.step)
        ready, waiting = ray.wait(calls, num_returns=len(calls), timeout=0)
        failure = next((error for each in ready if (error := _failure(each)) is not None), None)
        if failure is not None:
            self.replace(patient.rank, first_line(failure))
        elif waiting:
            if patient.state is State.STARTING:
                self._learn(patient, calls, ready)
            if time.monotonic() - patient.since > RESTART_SECONDS:
                self.replace(patient.rank, f"it {patient.state.value} for more than {RESTART_SECONDS:.0f} s")
        elif patient.state is State.STARTING:
            self._learn(patient, calls, ready)
            count = len(patient.members)
            patient.nodes, (patient.url, *_) = ray.get(calls[count : 2 * count]), ray.get(calls[2 * count :])
            self.moved()
            self._enter(patient, State.BARE)
            patient.beat, patient.asked = (), patient.since + self.options.rollout_health_check_first_wait
        elif patient.state is State.LOADING:
            self._join(patient)
        else:
            self._enter(patient, State.UP)
            self.restarts += 1
            what = f"version {self.version}" if self.version is not None else "the checkpoint's weights"
            self.tell(f"{patient.name} is back with {what} after {time.monotonic() - patient.fell:.0f} s")

    def _end(self, patient: Patient) -> None:
        """End processes that may be stopped or stuck, and all that they have started."""
        for member, node in zip(patient.members, patient.nodes, strict=True):
            with contextlib.suppress(Exception):
                ray.kill(member.actor)
            if not member.pid:
                continue
            if node == ray.get_runtime_context().get_node_id():
                end_tree(member.pid, member.identity)
            else:
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                ray.remote(end_tree).options(num_cpus=0, scheduling_strategy=there).remote(member.pid, member.identity)


def _failure(call: Any) -> Exception | None:
    try:
        ray.get(call)
    except Exception as error:
        return error
    return None
