"""The processes of a run, started on their devices, and calls to all of a kind at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from miles_core.accelerator.vendors import vendor
from miles_core.config import ClusterOptions, FaultToleranceOptions, LoopOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols import RouterLaunch
from miles_core.runtime.cluster import Cluster
from miles_core.runtime.critic_process import CriticProcess
from miles_core.runtime.engine_places import EnginePlaces
from miles_core.runtime.identity import ProcessIdentity
from miles_core.runtime.medic import Medic
from miles_core.runtime.plan import Front, PlacementPlan, RunPlan
from miles_core.runtime.processors import usable_cpus
from miles_core.runtime.rollout_process import RolloutProcess
from miles_core.runtime.router_process import RouterProcess
from miles_core.runtime.seats import Place, Seats, seat
from miles_core.runtime.supervisor import Supervisor
from miles_core.runtime.trainer_process import TrainerProcess
from miles_core.runtime.watch import GROUPS

TRAINER_SHARE = 0.4
START_TIMEOUT = 1800.0
ROUTER_TIMEOUT = 120.0


@dataclass
class Crew:
    """All processes of a run.

    Attributes:
        trainers: one Ray actor per rank of the actor.
        critics: one per rank of the critic; none without one.
        engines: one actor per engine: of its first part, where it is on several nodes.
        parts: all actors of each engine.
        router: the actor of the router in front of them, or None.
        rollout: the rollout manager's actor.
        medic: who starts engines again that die; None where the run ends with them.
        data_size, critic_data_size: data-parallel ranks among the trainers and the critics.
        info: what the rollout manager found in the data.
    """

    plan: RunPlan
    supervisor: Supervisor
    trainers: list[Any] = field(default_factory=list)
    critics: list[Any] = field(default_factory=list)
    engines: list[Any] = field(default_factory=list)
    parts: list[list[Any]] = field(default_factory=list)
    router: Any = None
    rollout: Any = None
    medic: Medic | None = None
    data_size: int = 1
    critic_data_size: int = 0
    info: Any = None
    _progress: Any = None

    def all_trainers(self, method: str, *args: Any, what: str, poll: Callable[[], None] | None = None) -> list[Any]:
        """Call a method on every rank at once."""
        return self.supervisor.wait([getattr(t, method).remote(*args) for t in self.trainers], what, poll=poll)

    def all_critics(self, method: str, *args: Any, what: str) -> list[Any]:
        """Call a method on every rank of the critic at once."""
        return self.supervisor.wait([getattr(c, method).remote(*args) for c in self.critics], what)

    @contextmanager
    def critics_on_devices(self) -> Iterator[None]:
        """While the trainers have devices that they share with the critics: lend them out."""
        if not self.plan.placement.critics_take_turns:
            yield
            return
        self.all_trainers("offload", what="trainers to offload")
        self.all_critics("onload", what="critics to load")
        yield
        self.all_critics("offload", what="critics to offload")
        self.all_trainers("onload", what="trainers to load")

    def all_engines(self, method: str, *args: Any, what: str, only: Sequence[int] | None = None) -> list[Any]:
        """Call a method of every engine at once, or of some; one that fails is replaced, where engines are."""
        medic = self.medic
        ranks = only if only is not None else range(len(self.engines)) if medic is None else medic.reachable
        called = [self.engines[rank] for rank in ranks]
        losing = None if medic is None else lambda number, why: medic.replace(ranks[number], why, called[number])
        return self.supervisor.wait([engine.call.remote(method, *args) for engine in called], what, losing=losing)

    def tell_router(self, method: str, *args: Any) -> None:
        """Call a method of the router, where there is one."""
        if self.router is not None:
            self.supervisor.wait([self.router.call.remote(method, *args)], "the router", ROUTER_TIMEOUT)

    def manager(self, method: str, *args: Any, what: str, poll: Callable[[], None] | None = None) -> Any:
        """Call a method of the rollout manager."""
        return self.supervisor.wait([getattr(self.rollout, method).remote(*args)], what, poll=poll)[0]

    def manager_progress(self) -> dict[str, Any] | None:
        """How far generation is, without waiting: the latest answer, or None."""
        if self._progress is None:
            self._progress = self.rollout.progress.remote()
            return None
        ready, _ = ray.wait([self._progress], timeout=0)
        if not ready:
            return None
        answer: dict[str, Any] = ray.get(self._progress)
        self._progress = None
        return answer

    @property
    def routers(self) -> list[Any]:
        """The router, or nothing."""
        return [] if self.router is None else [self.router]

    def reads(self) -> set[str]:
        """Flags that any process of the run read."""
        if self.medic is not None:
            self.medic.settle()
        refs = [actor.reads.remote() for actor in [*self.trainers, *self.critics, *self.engines, *self.routers, self.rollout]]
        return set().union(*self.supervisor.wait(refs, "option reads", 30))

    def close(self) -> None:
        """Let every process end well."""
        ranks: Sequence[int] = range(len(self.engines))
        if self.medic is not None:
            ranks = self.medic.reachable
            self.medic.close()
        stops = [part.call.remote("stop") for rank in ranks for part in self.parts[rank]]
        refs = [*(t.close.remote() for t in [*self.trainers, *self.critics]), *(r.call.remote("stop") for r in self.routers)]
        self.supervisor.wait([*refs, self.rollout.close.remote()], "processes to end", 60)
        losing = None if self.medic is None else lambda number, why: None
        self.supervisor.wait(stops, "engines to end", 60, losing=losing)


def start_crew(config: Config, plan: RunPlan, cluster: Cluster) -> Crew:
    """Start every process, all at once, and wait until each is ready."""
    run_dir = plan.run_dir
    supervisor = Supervisor(cluster, run_dir)
    crew = Crew(plan, supervisor)
    placement = plan.placement
    slots, seats = _seats(cluster, placement)
    at_once = placement.trainers if placement.colocate else placement.trainers + placement.critics
    taking_turns = config.get(LoopOptions).loop == "sync"
    beside = 0 if taking_turns else placement.engines
    trainer_env = _environment(placement, at_once + beside)
    critic_env = _environment(placement, max(placement.critics, 0 if placement.colocate else at_once, 1) + beside)
    further = {name: str(value) for name, value in config.get(ClusterOptions).train_env_vars.items()}
    trainer_env, critic_env = {**trainer_env, **further}, {**critic_env, **further}
    engine_env = _environment(placement, max(placement.engines, 1) + (0 if taking_turns else at_once))
    spans_nodes = len(ray.nodes()) > 1
    # Each process finds the address of the node that it is on.
    host = "" if spans_nodes else "127.0.0.1"

    for rank in range(placement.trainers):
        identity = ProcessIdentity("trainer", rank, run_dir, trainer_env)
        actor = _on(TrainerProcess, placement, slots[seats.ranks[rank].bundle], TRAINER_SHARE).remote(identity, config, plan)
        crew.trainers.append(actor)
        supervisor.watch(identity, actor)
    first = 0 if placement.colocate else placement.trainers
    for rank in range(placement.critics):
        identity = ProcessIdentity("critic", rank, run_dir, critic_env)
        actor = _on(CriticProcess, placement, slots[seats.ranks[first + rank].bundle], TRAINER_SHARE).remote(identity, config, plan)
        crew.critics.append(actor)
        supervisor.watch(identity, actor)
    on_slots = [[slots[part[0].bundle] for part in parts] for parts in seats.engines]
    several = placement.devices_per_engine > 1
    devices = [[_numbers(part) for part in parts] for parts in seats.engines] if several else ()
    places = EnginePlaces(config, plan, on_slots, devices, engine_env, host, config.get(TrainingOptions).seed)
    members = []
    for rank in range(placement.engines):
        members.append(supervisor.watch_parts(places.processes(rank)))
        crew.parts.append([member.actor for member in members[-1]])
        crew.engines.append(crew.parts[-1][0])
    beside_devices = {**vendor().hidden(), "OMP_NUM_THREADS": "1"}
    if plan.plugins.router is not None:
        identity = ProcessIdentity("router", 0, run_dir, beside_devices)
        router = ray.remote(concurrency_groups=GROUPS)(RouterProcess).options(num_cpus=0)
        crew.router = router.remote(identity, config, plan.plugins.router, plan.plugins.middlewares)
        supervisor.watch(identity, crew.router)
    identity = ProcessIdentity("rollout", 0, run_dir, beside_devices)
    crew.rollout = ray.remote(RolloutProcess).options(num_cpus=0).remote(identity, config, plan)
    supervisor.watch(identity, crew.rollout)
    supervisor.learn_pids()
    _write_pids(supervisor, run_dir)

    starts = [start for rank, parts in enumerate(crew.parts) for start in places.start(rank, parts)]
    groups = [ranks for ranks in (crew.trainers, crew.critics) if ranks]
    addresses = supervisor.wait([ranks[0].rendezvous.remote(spans_nodes) for ranks in groups], "first ranks", START_TIMEOUT)
    setups = [rank.setup.remote(address) for ranks, address in zip(groups, addresses, strict=True) for rank in ranks]
    urls = supervisor.wait(starts, "engines to start", START_TIMEOUT)[:: placement.nodes_per_engine]
    front = None
    if crew.router is not None:
        launch = RouterLaunch(tuple(urls), plan.checkpoint, host, log_dir=run_dir / "logs")
        front = Front(*supervisor.wait([crew.router.start.remote(launch)], "the router to start", START_TIMEOUT)[0])
    crew.info = supervisor.wait([crew.rollout.start.remote(urls, front)], "the rollout manager to start", START_TIMEOUT)[0]
    infos: Sequence[dict[str, Any]] = supervisor.wait(setups, "trainers to load the model", START_TIMEOUT)
    crew.data_size = infos[0]["data_size"] if crew.trainers else 1
    crew.critic_data_size = infos[len(crew.trainers)]["data_size"] if crew.critics else 0
    health = config.get(FaultToleranceOptions)
    if health.use_fault_tolerance and crew.engines:
        crew.medic = Medic(places, supervisor, crew.engines, crew.router, health, bool(crew.trainers), crew.parts)
        crew.medic.moved = lambda: _write_pids(supervisor, run_dir)
        crew.medic.admit(members, list(urls))
    return crew


def _write_pids(supervisor: Supervisor, run_dir: Path) -> None:
    """``processes.json``: who is who, for a profiler or a debugger."""
    pids = {"driver": os.getpid()}
    pids |= {name: process.pid for name, process in supervisor.cluster.system.items()}
    pids |= {member.identity.name: member.pid for member in supervisor.members}
    (run_dir / "processes.json").write_text(json.dumps(pids, indent=2) + "\n", encoding="utf-8")


def _on(process: type, placement: PlacementPlan, slot: PlacementGroupSchedulingStrategy, share: float) -> Any:
    resources: dict[str, Any] = {"num_cpus": share}
    if placement.device == "cuda":
        resources["num_gpus"] = share
    return ray.remote(concurrency_groups=GROUPS)(process).options(scheduling_strategy=slot, **resources)


def _environment(placement: PlacementPlan, concurrent: int) -> dict[str, str]:
    """For a process beside which ``concurrent - 1`` others work at the same time: they share the machine's cores."""
    env = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")}
    if placement.device == "cpu":
        env["OMP_NUM_THREADS"] = str(max(1, usable_cpus() // max(concurrent, 1)))
        env |= vendor().hidden()
    return env


def _numbers(part: Sequence[Place]) -> tuple[int, ...]:
    """Of the accelerators of a part of an engine."""
    return tuple(place.device for place in part if place.device is not None)


def _seats(cluster: Cluster, placement: PlacementPlan) -> tuple[list[PlacementGroupSchedulingStrategy], Seats]:
    """A scheduling slot per device, by bundle, and who gets which. Neighbours share a node."""
    slots = [
        PlacementGroupSchedulingStrategy(cluster.group, placement_group_bundle_index=i, placement_group_capture_child_tasks=True)
        for i in range(placement.devices)
    ]

    def where() -> tuple[list[int], str, list[str]]:
        address = ray.util.get_node_ip_address()
        parts = [int(part) if part.isdigit() else ord(part[0]) for part in address.split(".")]
        return parts, ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

    if len(ray.nodes()) == 1 and placement.device == "cpu":
        places = [Place(i, "") for i in range(len(slots))]
    else:
        share = {"num_gpus": TRAINER_SHARE} if placement.device == "cuda" else {}
        probes = [ray.remote(where).options(num_cpus=0.1, scheduling_strategy=slot, **share).remote() for slot in slots]
        found = ray.get(probes, timeout=120)
        order = sorted(range(len(slots)), key=lambda i: (*found[i][:2], [int(g) for g in found[i][2]]))
        places = [Place(i, found[i][1], int(found[i][2][0]) if found[i][2] else None) for i in order]
    engines = 0 if placement.external else placement.engines
    parts = placement.nodes_per_engine
    return slots, seat(places, engines, parts, placement.devices_per_engine // parts, shared=placement.colocate)
