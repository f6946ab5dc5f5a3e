"""The plan of a run: everything derived from the options before any process starts. Plain data that pickles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miles_core.plugins.refs import PluginRef


@dataclass(frozen=True)
class PluginPlan:
    """The implementations that the run uses.

    A supervised run (SFT) has no advantage, and an engine and a reward only to evaluate.
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

    @property
    def supervised(self) -> bool:
        """Whether responses come from the data."""
        return "supervised" in self.loss.capabilities


@dataclass(frozen=True)
class BatchPlan:
    """Batch arithmetic. ``rollout_batch_size`` prompts x ``n_samples`` = ``steps_per_rollout`` x ``global_batch_size`` samples."""

    rollout_batch_size: int
    n_samples: int
    global_batch_size: int
    steps_per_rollout: int
    num_rollout: int
    rollouts_per_epoch: int | None

    @property
    def train_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_rollout * self.steps_per_rollout


@dataclass(frozen=True)
class PlacementPlan:
    """Processes and devices.

    Attributes:
        device: ``cpu`` or ``cuda``.
        trainers: training ranks, one per device.
        engines: engine processes.
        devices_per_engine: devices of one engine.
        colocate: engines use the trainers' devices, in turn.
        offload_train, offload_rollout: whether each side frees the device for the other.
        communication: ``gloo`` or ``nccl``.
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

    @property
    def devices(self) -> int:
        """Devices that the run takes in all."""
        own = 0 if self.colocate else self.engines * self.devices_per_engine
        return max(self.trainers + own, self.engines * self.devices_per_engine)


@dataclass(frozen=True)
class RunPlan:
    """All of it."""

    plugins: PluginPlan
    batch: BatchPlan
    placement: PlacementPlan
    run_dir: Path
    checkpoint: Path
    resume_from: Path | None = None
