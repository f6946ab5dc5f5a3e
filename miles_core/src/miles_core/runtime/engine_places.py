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
    """One place per engine.

    Attributes:
        slots: Ray's scheduling strategies, one per engine; empty for engines that somebody else runs.
        devices: ids of the accelerators of each engine that has several.
        environment: of an engine's process.
        host: address that engines bind to; empty for the one of their node.
        seed: of the first engine.
    """

    config: Config
    plan: RunPlan
    slots: Sequence[Any]
    devices: Sequence[tuple[int, ...]]
    environment: dict[str, str]
    host: str
    seed: int

    def process(self, rank: int) -> tuple[ProcessIdentity, Any]:
        """Start the process of an engine."""
        placement, engine = self.plan.placement, self.plan.plugins.engine
        assert engine is not None
        kind: Any = ray.remote(concurrency_groups=GROUPS)(EngineProcess)
        environment = dict(self.environment)
        if placement.external:
            environment |= vendor().hidden()
            kind = kind.options(num_cpus=0)
        else:
            gpus = {"num_gpus": SHARE} if placement.device == "cuda" else {}
            kind = kind.options(scheduling_strategy=self.slots[rank], num_cpus=SHARE, **gpus)
        identity = ProcessIdentity("engine", rank, self.plan.run_dir, environment)
        return identity, kind.remote(identity, self.config, engine)

    def launch(self, rank: int) -> EngineLaunch:
        """What an engine is started with."""
        placement = self.plan.placement
        return EngineLaunch(
            rank=rank,
            model=self.plan.checkpoint,
            seed=self.seed + rank,
            memory_saver=placement.offload_rollout,
            host=self.host,
            port=0 if placement.engine_port is None else placement.engine_port + rank,
            log_dir=self.plan.run_dir / "logs",
            devices=self.devices[rank] if self.devices else (),
            url=placement.external[rank] if placement.external else "",
        )
