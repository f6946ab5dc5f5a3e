"""The ``megatron`` training backend."""

from __future__ import annotations

import dataclasses
import gc
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from miles_core.accelerator.device import accelerator_of, rank_device
from miles_core.accelerator.parking import Parking
from miles_core.config import ClusterOptions, RoutingOptions, TrainingOptions
from miles_core.errors import RunError
from miles_core.numerics.compiler import check_compiler
from miles_core.protocols.backend import LossCallback, ModelSpec, OutputRequest, Parallel, StepReport
from miles_core.state import HeldState, StateFiles
from miles_core.training.batch import MicroBatch, ModelOutputs
from miles_megatron import checkpoints, mapping
from miles_megatron.alone import Alone, release_gradients, restore_gradients
from miles_megatron.build import Model, build, precision, wrapped
from miles_megatron.comparison import compare
from miles_megatron.conversion import conversion
from miles_megatron.copies import Copies
from miles_megatron.mtp import MtpLoss
from miles_megatron.optimizer import Optimizer
from miles_megatron.options import MegatronOptions
from miles_megatron.parallel import OWNER, is_last_stage, place, set_up
from miles_megatron.passes import Pass
from miles_megatron.routing import Replays

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from miles_core.options import Config

EXPORT_BYTES = 1 << 29
"""Of the tensors that an export gathers at once."""


class MegatronBackend:
    """:class:`miles_core.protocols.TrainingBackend` on megatron-core: ranks share out layers, heads, tokens, experts and rows.

    Parameters are in the precision of the computation; gradient sums, master weights and optimizer state are fp32. Copies of the
    actor (reference, old actor) take its place in the model for a pass; other models are built beside it.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._options = config.get(MegatronOptions)
        self._device: torch.device | None = None
        self._models: dict[str, Model] = {}
        self._parking: dict[str, Parking] = {}
        self._changed: set[str] = set()
        self._replays = Replays()
        self._offloaded = False

    @property
    def device(self) -> torch.device:
        """Where micro-batches go."""
        if self._device is None:
            groups = dist.get_backend_config() if dist.is_initialized() else ""
            rank = dist.get_rank() if dist.is_initialized() else 0
            self._device = rank_device(rank, self._config.get(ClusterOptions).device, groups)
        return self._device

    @property
    def parallel(self) -> Parallel:
        """This rank's place: ranks of one model-parallel group get the same rows, and those of the last stage compute the loss."""
        return place()

    def setup(self, spec: ModelSpec) -> None:
        """Build the actor, its copies and the optimizer from ``spec``.

        Raises:
            UsageError: there is no GPU (M552), the checkpoint does not fit, the model is not that of transformers (M553, M554), or
                what is to convert weights cannot (M577 to M579).
        """
        self._spec = spec
        self._conversion = conversion(self._options, spec.checkpoint, value_head=spec.value_head)
        here = accelerator_of(self.device)
        here.use(self.device)
        self._reserve()
        timeout, seed = self._config.get(ClusterOptions).distributed_timeout_minutes, self._config.get(TrainingOptions).seed
        set_up(self._options, timeout, seed)
        if self._options.compile:
            check_compiler(self.device.type, "--megatron-compile", OWNER)
        self._compute = precision(self._options.precision, self.device)
        actor = self._models["actor"] = build(self._config, spec.checkpoint, self.device, critic=spec.value_head)
        self._copies = Copies(actor.chunks, on_device=self._options.disable_weights_backuper)
        sources = dict(spec.copy_sources)
        for name in spec.copies:
            self._conversion.load_hf(actor.chunks, actor.architecture, sources.get(name, spec.checkpoint))
            self._copies.keep(name)
        self._conversion.load_hf(actor.chunks, actor.architecture, spec.weights or spec.checkpoint)
        if self._options.check_log_probs and not spec.value_head:
            compare(actor.policy, spec.weights or spec.checkpoint, actor.architecture, self.device)
        self._wrapped = wrapped(actor, self._options)
        self._optimizer = Optimizer(self._config, self._wrapped, spec.train_steps, self._compute)
        for chunk in self._wrapped:
            if isinstance(chunk, Alone):
                release_gradients(chunk)
        self._parking["actor"] = Parking()
        for name, source in spec.models:
            model = self._models[name] = build(self._config, source, self.device, trainable=False)
            self._conversion.load_hf(model.chunks, model.architecture, source)
            self._parking[name] = Parking()
            self._put_away(name)
        if self._config.get(RoutingOptions).replays and not spec.value_head:
            self._replays.of("actor", actor.policy)

    def forward(
        self, micro_batches: Sequence[MicroBatch], request: OutputRequest, *, weights: str = "actor"
    ) -> list[ModelOutputs] | None:
        """Outputs without gradients, in the order given; None where no loss is computed, unless routes are requested.

        Raises:
            RunError: there are no such weights, or they are offloaded (M431, M432).
        """
        self._check_present(weights)
        if weights in self._copies.names:
            with self._copies.in_place(weights):
                return self._forward("actor", micro_batches, request)
        self._fetch(weights)
        outputs = self._forward(weights, micro_batches, request)
        self._put_away(weights)
        return outputs

    def _forward(self, name: str, micro_batches: Sequence[MicroBatch], request: OutputRequest) -> list[ModelOutputs] | None:
        model = self._models[name]
        chunks = self._wrapped if name == "actor" else model.chunks
        with self._replays.during(name, model.policy, micro_batches, request) as replay:
            found = Pass(model.policy, chunks, request, replay).forward(micro_batches)
            if replay is not None and request.routes:
                routes = [replay.taken(number) for number in range(len(micro_batches))]
                found = found or [ModelOutputs()] * len(routes)
                return [dataclasses.replace(one, routes=each) for one, each in zip(found, routes, strict=True)]
        return found if is_last_stage() else None

    def train_step(self, micro_batches: Sequence[MicroBatch], request: OutputRequest, loss: LossCallback) -> StepReport:
        """One optimizer step over all micro-batches.

        Raises:
            RunError: the loss does not depend on the model (M430), or the actor is offloaded (M431).
        """
        assert micro_batches, "a step needs a micro-batch"
        self._check_present("actor")
        model = self._models["actor"]
        self._optimizer.begin()
        ahead = None
        if model.mtp_layers:
            if self._options.pipeline_model_parallel_size > 1:
                # The first stage gives the last one its embedding.
                self._settle()
            ahead = MtpLoss(model.policy, model.mtp_layers, self._options.mtp_loss_scaling_factor, request.chunk_size)
        with self._replays.during("actor", model.policy, micro_batches, request) as replay:
            Pass(model.policy, self._wrapped, request, replay, ahead).train(micro_batches, loss)
        norm, rate, skipped = self._optimizer.step()
        metrics = {} if ahead is None else ahead.metrics()
        return StepReport(grad_norm=norm, learning_rates=(rate,), skipped=skipped, metrics=metrics)

    def export_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The actor's weights, whole, under their HF names in the checkpoint's dtypes. Collective; all ranks yield."""
        self._check_present("actor")
        self._settle()
        model = self._models["actor"]
        for bucket in self._conversion.export_hf(model.chunks, model.architecture, EXPORT_BYTES):
            yield from bucket

    def copy_weights(self, source: str, target: str) -> None:
        """Overwrite one named weight set by another; the optimizer's moments stay.

        Raises:
            RunError: there are no such weights, or the actor is offloaded (M431, M432).
        """
        for name in (source, target):
            self._check_present(name)
        if source == target:
            return
        self._settle()
        if source == "actor":
            self._copies.keep(target)
        elif target == "actor":
            self._copies.restore(source)
            self._optimizer.refresh()
        else:
            self._copies.overwrite(source, target)
        self._changed |= {target} - {"actor"}

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments.

        Raises:
            RunError: the actor is offloaded (M431).
        """
        self._check_present("actor")
        self._optimizer.reset()

    def save(self, directory: Path) -> None:
        """Save model, optimizer, step count, overwritten copies and this rank's RNG. Collective."""
        self._save(directory, StateFiles())

    def hold(self, directory: Path) -> HeldState:
        """Copy to host memory what :meth:`save` writes, each rank the files that it is going to write. Collective."""
        files = StateFiles(hold=True)
        self._save(directory, files)
        return HeldState(files.write)

    def _save(self, directory: Path, files: StateFiles) -> None:
        self._check_present("actor")
        self._settle()
        copies = {name: self._copies.tensors(name) for name in sorted(self._changed)}
        actor = self._models["actor"]
        checkpoints.save(directory, files, actor.chunks, actor.architecture, self._optimizer, copies)

    def load(self, directory: Path) -> None:
        """Restore what :meth:`save` wrote, also on other parallel sizes. Collective.

        Raises:
            UsageError: the state is not there, or of another model or optimizer.
        """
        self._check_present("actor")
        copies = {name: self._copies.tensors(name) for name in sorted(self._copies.names)}
        actor = self._models["actor"]
        self._changed = set(checkpoints.load(directory, actor.chunks, actor.architecture, self._optimizer, copies))

    def export_hf(self, directory: Path) -> None:
        """Write an HF directory, whole or not at all. Collective."""
        self._check_present("actor")
        self._settle()
        model = self._models["actor"]
        buckets = self._conversion.export_hf(model.chunks, model.architecture, EXPORT_BYTES)
        mapping.save_hf(buckets, directory, self._spec.checkpoint)

    def offload(self) -> None:
        """Free the accelerator; without one there is nothing to move."""
        if self._offloaded:
            return
        self._settle()
        self._offloaded = True
        if self.device.type != "cuda":
            return
        weights = [param.data for param in self._models["actor"].parameters()]
        self._parking["actor"].out(weights + self._optimizer.storage())
        for chunk in self._wrapped:
            release_gradients(chunk)
        gc.collect()
        accelerator_of(self.device).release_cache()

    def onload(self) -> None:
        """Undo :meth:`offload`; gradients come back as zeros."""
        if not self._offloaded:
            return
        self._offloaded = False
        if self.device.type != "cuda":
            return
        self._parking["actor"].back()
        for chunk in self._wrapped:
            restore_gradients(chunk)

    def close(self) -> None:
        """Drop models and optimizer."""
        self._models.clear()
        self._parking.clear()
        self._replays.clear()
        for name in ("_optimizer", "_wrapped", "_copies"):
            self.__dict__.pop(name, None)

    def _check_present(self, name: str) -> None:
        """A weight set must be there to be used."""
        known = {*self._models, *self._copies.names}
        if name not in known:
            raise RunError("M432", f"there are no weights named {name}", owner=OWNER, why=f"set up: {', '.join(sorted(known))}")
        if self._offloaded and (name == "actor" or name in self._copies.names):
            raise RunError("M431", "the actor is offloaded", owner=OWNER, fix="call onload() first")

    def _settle(self) -> None:
        """Wait for parameters that are still being gathered."""
        if self._options.overlap_param_gather:
            for chunk in self._wrapped:
                chunk.start_param_sync(force_sync=True)

    def _fetch(self, name: str) -> None:
        if name != "actor":
            self._parking[name].back()

    def _put_away(self, name: str) -> None:
        """Keep another model in host memory while nobody uses it."""
        if name != "actor" and self.device.type == "cuda":
            self._parking[name].out([param.data for param in self._models[name].parameters()], unchanged=True)

    def _reserve(self) -> None:
        """Leave ``--train-memory-margin-bytes`` of the device to others: what would take them is out of memory."""
        margin = self._options.train_memory_margin_bytes
        if margin > 0 and self.device.type == "cuda":
            whole = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(max(whole - margin, 0) / whole, self.device)
