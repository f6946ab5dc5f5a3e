"""A training rank: one Ray actor with torch.distributed, a backend and core's trainer inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray

from miles_core.config import AlgorithmOptions, FaultToleranceOptions, LoopOptions, RolloutOptions, TeacherOptions
from miles_core.errors import RunError
from miles_core.runtime.engine_handle import RayEngineHandle
from miles_core.runtime.identity import host_address, recorded
from miles_core.runtime.rank_process import RankProcess

LOST_CODES = ("M470", "M475")
"""Errors of a publish whose engine may have died."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class TrainerProcess(RankProcess):
    """One rank of the actor."""

    @recorded
    def setup(self, address: tuple[str, int]) -> dict[str, Any]:
        """Join the other ranks, build the model, and load the run state when the plan resumes one."""
        from miles_core.debug.watch import TrainingWatch
        from miles_core.plugins import create
        from miles_core.protocols import ModelSpec
        from miles_core.training.trainer import Trainer

        self.join(address, self.plan.placement.trainers)
        plugins = self.plan.plugins
        loss: Any = create(plugins.loss, self.config)
        advantage: Any = create(plugins.advantage, self.config) if plugins.advantage else None
        needs = loss.needs | (advantage.needs if advantage is not None else frozenset())
        self.backend = create(plugins.backend, self.config)
        self.backend.setup(
            ModelSpec(
                checkpoint=self.plan.checkpoint,
                train_steps=self.plan.batch.train_steps,
                copies=self._copies(needs),
                copy_sources=self._copy_sources(),
                models=self._further_models(needs),
            )
        )
        function = plugins.functions.get("data_postprocess")
        hook = create(function, self.config) if function is not None else None
        self._watch = TrainingWatch(self.config, self.plan.run_dir, self.rank, self.backend.device)
        self.trainer = Trainer(self.config, self.backend, loss, advantage, hook, self._watch)
        if self.plan.resume_from is not None:
            self.backend.load(self.plan.resume_from / "trainer")
        self._publisher: Any = None
        self._keeper: Any = None
        self._fed: tuple[Any, ...] = ()
        self._served = -1
        self._groups: dict[tuple[int, ...], Any] = {}
        self._grouped = False
        # Ranks that met over loopback share a node with the engines.
        host = address[0]
        near = all(urlsplit(url).hostname in LOOPBACK for url in self.plan.placement.external)
        self._host = host if host == "127.0.0.1" and near else host_address()
        return {"data_size": self.backend.parallel.data_size}

    def _copies(self, needs: frozenset[str]) -> tuple[str, ...]:
        reference = ("ref",) if "ref_log_probs" in needs else ()
        return (*reference, *self._kept_copies())

    def _kept_copies(self) -> tuple[str, ...]:
        """``old_actor`` made the rollout that is trained on; ``served_actor`` is what engines serve, where that is another."""
        if not self.config.get(AlgorithmOptions).keep_old_actor:
            return ()
        return ("old_actor", "served_actor") if self.config.get(LoopOptions).loop == "one-step" else ("old_actor",)

    def _keep(self, version: int) -> None:
        """Engines are about to serve the actor's weights."""
        copies = self._kept_copies()
        if len(copies) > 1:
            self.backend.copy_weights("served_actor", "old_actor")
        if copies:
            self.backend.copy_weights("actor", copies[-1])
        self._served = version

    def _recall(self, version: int) -> None:
        """Have ``old_actor`` be what made a rollout: the version served now, or the one before."""
        if len(self._kept_copies()) > 1 and version == self._served:
            self.backend.copy_weights("served_actor", "old_actor")

    def _copy_sources(self) -> tuple[tuple[str, Path], ...]:
        reference = self.config.get(AlgorithmOptions).ref_load
        return (("ref", Path(reference)),) if reference else ()

    def _further_models(self, needs: frozenset[str]) -> tuple[tuple[str, Path], ...]:
        teacher = self.config.get(TeacherOptions).teacher_load
        return (("teacher", Path(teacher).expanduser()),) if teacher and "teacher_log_probs" in needs else ()

    @recorded
    def train(self, batches: Sequence[Any], version: int) -> Any:
        """Train on this rank's share; ``batches`` holds one reference per data-parallel rank, made by ``version``."""
        self._recall(version)
        return self.trainer.train(ray.get(batches[self.backend.parallel.data_rank]))

    @recorded
    def begin(self, batches: Sequence[Any], version: int, values: Sequence[Any]) -> Any:
        """Advantages of this rank's share, with the critic's ``values``; gives a reference to the returns, None without any."""
        from miles_core.training.exchange import ByIndex, TokenArrays

        self._recall(version)
        batch = ray.get(batches[self.backend.parallel.data_rank])
        self._begun = self.trainer.begin(ByIndex(ray.get(list(values)), name="values", source="critic").attached(batch))
        returns = self._begun.fields.get("returns")
        return None if returns is None else ray.put(TokenArrays.of(self._begun.table, returns))

    @recorded
    def finish(self, steps: bool) -> Any:
        """Train on what :meth:`begin` began, or with ``steps`` off only report on it."""
        return self.trainer.finish(self._begun, steps=steps)

    @recorded
    def publish(self, version: int, engines: Sequence[Any], resume: bool) -> Any:
        """Send the weights to the engines, and let them ``resume``.

        Returns:
            The report of a rank that sent, None elsewhere. Where engines are started again, the error of one that failed; the
            same version is then published anew.
        """
        from miles_core.weights.publisher import WeightPublisher, drain
        from miles_core.weights.transports import open_transport
        from miles_core.weights.transports.block import BlockTransport

        options = self.config.get(RolloutOptions)
        if version != self._served:
            self._keep(version)
        mine = self._my_engines(engines)
        block = self._block(len(engines))
        if not mine and not block:
            drain(self.backend.export_weights())
            return None
        if self._publisher is None:
            ranks = 1 if block else self.plan.placement.devices_per_engine
            transport = open_transport(self._transport_name(), self.plan.run_dir, self.identity.name, host=self._host, ranks=ranks)
            self._publisher = WeightPublisher(
                BlockTransport(transport, self._groups[block], block) if block else transport,
                bucket_bytes=options.update_weight_buffer_size,
                check_equal=options.check_weight_update_equal and bool(mine),
            )
        fed = tuple(engines[i]._actor_id for i in mine)
        if self._fed and fed != self._fed:
            self._publisher.forget()
        self._fed = fed
        handles = [RayEngineHandle(f"engine-{i}", engines[i]) for i in mine]
        export = self.backend.export_weights()
        try:
            report = self._publisher.publish(version, self._prepared(export), handles, resume=resume, keeper=self._keeper_of(mine))
        except (RunError, RuntimeError) as error:
            code = getattr(error, "code", LOST_CODES[-1])
            if not self._restarts or block or code not in LOST_CODES:
                raise
            # The other ranks are in the midst of the export, too.
            drain(export)
            return error if isinstance(error, RunError) else RunError(code, str(error), owner="miles-core")
        return report if mine else None

    @property
    def _restarts(self) -> bool:
        """Whether engines are started again when they die."""
        return self.config.get(FaultToleranceOptions).use_fault_tolerance

    def _keeper_of(self, engines: Sequence[int]) -> Any:
        """What keeps the weights for engines that are started again; one rank does."""
        from miles_core.weights.kept import FOLDER, WeightKeeper

        if self._keeper is None and self._restarts and self.rank == 0 and engines:
            self._keeper = WeightKeeper(self.plan.run_dir / FOLDER)
        return self._keeper

    def _block(self, engines: int) -> tuple[int, ...]:
        """Ranks on the devices of this rank's engine, over CUDA IPC to engines of several; none where the first feeds it alone."""
        import torch.distributed as dist

        placement = self.plan.placement
        size = placement.devices_per_engine
        if size == 1 or self._transport_name() != "cuda_ipc":
            return ()
        if not self._grouped:
            self._grouped = True
            exports: list[Any] = [None] * placement.trainers
            dist.all_gather_object(exports, self.backend.parallel.exports)
            firsts = range(0, min(engines * size, placement.trainers), size) if all(exports) else ()
            # Making a group is collective: every rank makes all of them.
            blocks = [tuple(range(first, first + size)) for first in firsts]
            if placement.nodes_per_engine > 1 and not all(exports):
                what = "engines over several nodes cannot take weights from trainers on their GPUs"
                why = "only some ranks of this backend export, and a handle of GPU memory is worth nothing on another node"
                raise RunError("M536", what, owner="miles-core", why=why, fix="leave --colocate out, or take engines of one node")
            self._groups = {block: dist.new_group(list(block), backend="gloo") for block in blocks}
        return next((block for block in self._groups if self.rank in block), ())

    def _prepared(self, export: Any) -> Any:
        """Weights as engines are sent them."""
        from miles_core.plugins import create

        ref = self.plan.plugins.export
        return export if ref is None else create(ref, self.config)(export)

    def _transport_name(self) -> str:
        assert self.plan.plugins.engine is not None
        can = self.plan.plugins.engine.capabilities
        if self.plan.placement.device == "cpu":
            return "shared_file" if "shared_file" in can else "disk"
        if self.plan.placement.colocate:
            return "cuda_ipc"
        return "broadcast" if "broadcast" in can else "process_group"

    def _my_engines(self, engines: Sequence[Any]) -> list[int]:
        """Engines that this rank feeds: over CUDA IPC each rank feeds those on its own device, else rank 0 feeds all."""
        if not self.backend.parallel.exports:
            return []
        if self._transport_name() == "cuda_ipc":
            return [i for i in range(len(engines)) if i * self.plan.placement.devices_per_engine == self.rank]
        return list(range(len(engines))) if self.rank == 0 else []

    @recorded
    def close(self) -> None:
        """End well: what was recorded, transports, backend and process group."""
        self._watch.close()
        if self._keeper is not None:
            self._keeper.close()
        if self._publisher is not None:
            self._publisher.close()
        super().close()
