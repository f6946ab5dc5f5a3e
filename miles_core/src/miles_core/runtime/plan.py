"""The plan of a run: everything derived from the options before any process starts. Plain data that pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from miles_core.plugins.refs import PluginRef


@dataclass(frozen=True)
class PluginPlan:
    """The implementations that the run uses.

    A supervised run (SFT) has no advantage, and an engine and a reward only to evaluate. ``critic_loss`` is there when the
    advantage needs a critic. ``functions`` are those that options name by path, by the name of their signature. ``router`` is what
    stands in front of the engines, which may be nothing, and ``middlewares`` are core's router's.
    ``export`` turns the trainers' weights into what engines are sent.
    """

    backend: PluginRef
    loss: PluginRef
    engine: PluginRef | None = None
    advantage: PluginRef | None = None
    reward: PluginRef | None = None
    filters: tuple[PluginRef, ...] = ()
    loggers: tuple[PluginRef, ...] = ()
    hooks: tuple[PluginRef, ...] = ()
    algo: PluginRef | None = None
    critic_loss: PluginRef | None = None
    functions: Mapping[str, PluginRef] = field(default_factory=dict)
    middlewares: tuple[PluginRef, ...] = ()
    router: PluginRef | None = None
    export: PluginRef | None = None

    @property
    def supervised(self) -> bool:
        """Whether responses come from the data."""
        return "supervised" in self.loss.capabilities


@dataclass(frozen=True)
class BatchPlan:
    """Batch arithmetic. ``rollout_batch_size`` prompts x ``n_samples`` = ``steps_per_rollout`` x ``global_batch_size`` samples.

    In the first ``critic_only_rollouts`` rollouts the actor is not trained.
    """

    rollout_batch_size: int
    n_samples: int
    global_batch_size: int
    steps_per_rollout: int
    num_rollout: int
    rollouts_per_epoch: int | None
    critic_only_rollouts: int = 0

    @property
    def train_steps(self) -> int:
        """Optimizer steps of the actor in the whole run."""
        return max(self.num_rollout - self.critic_only_rollouts, 0) * self.steps_per_rollout

    @property
    def critic_steps(self) -> int:
        """Optimizer steps of the critic in the whole run."""
        return self.num_rollout * self.steps_per_rollout


@dataclass(frozen=True)
class PlacementPlan:
    """Processes and devices.

    Attributes:
        device: ``cpu`` or ``cuda``.
        trainers: ranks that train the actor, one per device.
        engines: engine processes.
        devices_per_engine: devices of one engine.
        nodes_per_engine: nodes of one engine, each with as many of its devices.
        colocate: engines use the trainers' devices, in turn.
        offload_train, offload_rollout: whether each side frees the device for the other.
        communication: ``gloo`` or ``nccl``.
        external: addresses of engines that run already, which take no devices of the run; empty for engines of its own.
        critics: ranks that train the critic, one per device: the trainers' devices when colocated, else their own.
        engine_port: port of the first engine, the others take those that follow; None for free ones.
    """

    device: str
    trainers: int
    engines: int
    devices_per_engine: int
    colocate: bool
    offload_train: bool
    offload_rollout: bool
    communication: str
    engine_port: int | None = None
    critics: int = 0
    external: tuple[str, ...] = ()
    nodes_per_engine: int = 1

    @property
    def devices(self) -> int:
        """Devices that the run takes in all."""
        generation = 0 if self.external else self.engines * self.devices_per_engine
        if self.colocate:
            return max(self.trainers, self.critics, generation)
        return self.trainers + self.critics + generation

    @property
    def critics_take_turns(self) -> bool:
        """Whether actor and critic free the devices for each other."""
        return self.critics > 0 and self.colocate and self.offload_train


@dataclass(frozen=True)
class Front:
    """The router in front of a run's engines: its address, and whether an abort that it is told reaches every engine."""

    url: str
    tells_all: bool


@dataclass(frozen=True)
class RunPlan:
    """All of it."""

    plugins: PluginPlan
    batch: BatchPlan
    placement: PlacementPlan
    run_dir: Path
    checkpoint: Path
    resume_from: Path | None = None


def critic_folder(save_hf: Path) -> Path:
    """Where the critic is exported to, beside the actor: ``DIR-critic``."""
    return save_hf.with_name(f"{save_hf.name}-critic")
