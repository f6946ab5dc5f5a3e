"""A training rank: one Ray actor with torch.distributed, a backend and core's trainer inside."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from miles_core.config import AlgorithmOptions, ClusterOptions, RolloutOptions, TeacherOptions, TrainingOptions
from miles_core.options import Config
from miles_core.runtime.engine_handle import RayEngineHandle
from miles_core.runtime.identity import ProcessIdentity, free_port, host_address, recorded
from miles_core.runtime.plan import RunPlan
from miles_core.runtime.watch import Watched


class TrainerProcess(Watched):
    """One rank. Methods are collective: the driver calls them on all ranks at once."""

    def __init__(self, identity: ProcessIdentity, config: Config, plan: RunPlan) -> None:
        super().__init__(identity)
        self.config = config
        self.plan = plan
        self.rank = identity.rank
        self.world = plan.placement.trainers

    @recorded
    def rendezvous(self, spans_nodes: bool) -> tuple[str, int]:
        """Address and port at which the ranks meet; asked of rank 0. Loopback unless the run spans nodes."""
        host = host_address() if spans_nodes else "127.0.0.1"
        return host, free_port(host)

    @recorded
    def setup(self, address: tuple[str, int]) -> dict[str, Any]:
        """Join the other ranks, build the model, and load the run state when the plan resumes one."""
        import torch
        import torch.distributed as dist

        from miles_core.plugins import create
        from miles_core.protocols import ModelSpec
        from miles_core.training.trainer import Trainer

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        host, port = address
        minutes = self.config.get(ClusterOptions).distributed_timeout_minutes
        backend = "gloo" if self.plan.placement.communication == "gloo" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(
            backend,
            init_method=f"tcp://{f'[{host}]' if ':' in host else host}:{port}",
            rank=self.rank,
            world_size=self.world,
            timeout=datetime.timedelta(minutes=minutes),
        )
        plugins = self.plan.plugins
        loss: Any = create(plugins.loss, self.config)
        advantage: Any = create(plugins.advantage, self.config) if plugins.advantage else None
        needs = loss.needs | (advantage.needs if advantage is not None else frozenset())
        self.backend: Any = create(plugins.backend, self.config)
        torch.manual_seed(self.config.get(TrainingOptions).seed + self.rank)
        self.backend.setup(
            ModelSpec(
                checkpoint=self.plan.checkpoint,
                train_steps=self.plan.batch.train_steps,
                copies=("ref",) if "ref_log_probs" in needs else (),
                copy_sources=self._copy_sources(),
                models=self._further_models(needs),
            )
        )
        self.trainer = Trainer(self.config, self.backend, loss, advantage)
        if self.plan.resume_from is not None:
            self.backend.load(self.plan.resume_from / "trainer")
        self._publisher: Any = None
        # Ranks that met over loopback share a node with the engines.
        self._host = host if host == "127.0.0.1" else host_address()
        return {"data_size": self.backend.parallel.data_size}

    def _copy_sources(self) -> tuple[tuple[str, Path], ...]:
        reference = self.config.get(AlgorithmOptions).ref_load
        return (("ref", Path(reference)),) if reference else ()

    def _further_models(self, needs: frozenset[str]) -> tuple[tuple[str, Path], ...]:
        teacher = self.config.get(TeacherOptions).teacher_load
        return (("teacher", Path(teacher).expanduser()),) if teacher and "teacher_log_probs" in needs else ()

    @recorded
    def train(self, batches: Sequence[Any]) -> Any:
        """Train on this rank's share; ``batches`` holds one reference per data-parallel rank."""
        return self.trainer.train(ray.get(batches[self.backend.parallel.data_rank]))

    @recorded
    def publish(self, version: int, engines: Sequence[Any], resume: bool) -> Any:
        """Send the weights to the engines, and let them ``resume``; returns the report of a rank that sent, None elsewhere."""
        from miles_core.weights.publisher import WeightPublisher, drain
        from miles_core.weights.transports import open_transport

        options = self.config.get(RolloutOptions)
        mine = self._my_engines(engines)
        if not mine:
            drain(self.backend.export_weights())
            return None
        if self._publisher is None:
            transport = open_transport(self._transport_name(), self.plan.run_dir, self.identity.name, host=self._host)
            self._publisher = WeightPublisher(
                transport, bucket_bytes=options.update_weight_buffer_size, check_equal=options.check_weight_update_equal
            )
        handles = [RayEngineHandle(f"engine-{i}", engines[i]) for i in mine]
        return self._publisher.publish(version, self.backend.export_weights(), handles, resume=resume)

    def _transport_name(self) -> str:
        if self.plan.placement.device == "cpu":
            return "shared_file"
        return "cuda_ipc" if self.plan.placement.colocate else "broadcast"

    def _my_engines(self, engines: Sequence[Any]) -> list[int]:
        """Engines that this rank feeds: over CUDA IPC each rank feeds those on its own device, else rank 0 feeds all."""
        if not self.backend.parallel.exports:
            return []
        if self._transport_name() == "cuda_ipc":
            return [i for i in range(len(engines)) if i * self.plan.placement.devices_per_engine == self.rank]
        return list(range(len(engines))) if self.rank == 0 else []

    @recorded
    def save(self, directory: Path) -> None:
        """Write this rank's part of a run state."""
        self.backend.save(directory)

    @recorded
    def export_hf(self, directory: Path) -> None:
        """Write the model as an HF directory."""
        self.backend.export_hf(directory)

    @recorded
    def offload(self) -> None:
        """Free the device for the engines."""
        self.backend.offload()

    @recorded
    def onload(self) -> None:
        """Take the device back."""
        self.backend.onload()

    @recorded
    def close(self) -> None:
        """End well: transports, backend and process group."""
        import torch.distributed as dist

        if self._publisher is not None:
            self._publisher.close()
        self.backend.close()
        if dist.is_initialized():
            dist.destroy_process_group()
