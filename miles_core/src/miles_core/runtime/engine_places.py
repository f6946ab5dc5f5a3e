"""Where the engines of a run are, and how one is started there: at the beginning, and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from miles_core.accelerator.vendors import vendor
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_core.runtime.engine_process import EngineProcess
from miles_core.runtime.identity import ProcessIdentity
from miles_core.runtime.plan import RunPlan
from miles_core.runtime.watch import GROUPS

SHARE = 0.2
"""Of a device, as Ray counts it: engine and trainer of a colocated run are on one."""


@dataclass(frozen=True)
class EnginePlaces:
    """Where engines are: an engine over several nodes has a process on each, its parts, of which the first is the engine to others.

    Attributes:
        slots: Ray's scheduling strategies, one per part of each engine; empty for engines that somebody else runs.
        devices: ids of the accelerators of each part, where an engine has several.
        environment: of an engine's process.
        host: address that engines bind to; empty for the one of their node.
        seed: of the first engine.
    """

    config: Config
    plan: RunPlan
    slots: Sequence[Sequence[Any]]
    devices: Sequence[Sequence[tuple[int, ...]]]
    environment: dict[str, str]
    host: str
    seed: int

    def processes(self, rank: int) -> list[tuple[ProcessIdentity, Any]]:
        """Start the processes of an engine, one for each part."""
        return [self._process(rank, part) for part in range(self.plan.placement.nodes_per_engine)]

    def start(self, rank: int, parts: Sequence[Any]) -> list[Any]:
        """Start an engine in its processes, in all at once; the first call's result is its URL."""
        if len(parts) == 1:
            return [parts[0].start.remote(self.launch(rank))]
        # Each part gets the address when the first has found it.
        meeting = parts[0].meeting.remote(self.host)
        return [actor.start.remote(self.launch(rank, part), meeting) for part, actor in enumerate(parts)]

    def _process(self, rank: int, part: int) -> tuple[ProcessIdentity, Any]:
        placement, engine = self.plan.placement, self.plan.plugins.engine
        assert engine is not None
        kind: Any = ray.remote(concurrency_groups=GROUPS)(EngineProcess)
        environment = dict(self.environment)
        if placement.external:
            environment |= vendor().hidden()
            kind = kind.options(num_cpus=0)
        else:
            gpus = {"num_gpus": SHARE} if placement.device == "cuda" else {}
            kind = kind.options(scheduling_strategy=self.slots[rank][part], num_cpus=SHARE, **gpus)
        identity = ProcessIdentity("engine", rank, self.plan.run_dir, environment, part=part)
        return identity, kind.remote(identity, self.config, engine)

    def launch(self, rank: int, part: int = 0) -> EngineLaunch:
        """What a part of an engine is started with. Only the first is called by others, so that its port alone matters."""
        placement = self.plan.placement
        port = None if part else placement.engine_port
        return EngineLaunch(
            rank=rank,
            model=self.plan.checkpoint,
            seed=self.seed + rank,
            memory_saver=placement.offload_rollout,
            host=self.host,
            port=0 if port is None else port + rank,
            log_dir=self.plan.run_dir / "logs",
            devices=self.devices[rank][part] if self.devices else (),
            node_rank=part,
            num_nodes=placement.nodes_per_engine,
            url=placement.external[rank] if placement.external else "",
        )
