"""The ``fsdp`` training backend."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from miles_core.accelerator.device import accelerator_of, rank_device
from miles_core.accelerator.parking import Parking
from miles_core.config import ClusterOptions, RoutingOptions, TrainingOptions
from miles_core.errors import RunError
from miles_core.hf import HfWeights, write_hf
from miles_core.numerics.compiler import check_compiler
from miles_core.numerics.model import check_place
from miles_core.protocols.backend import LossCallback, ModelSpec, OutputRequest, Parallel, StepReport
from miles_core.training.batch import MicroBatch, ModelOutputs
from miles_fsdp import value_head
from miles_fsdp.attention import INVARIANT, SHARED, check_packable, choose_attention
from miles_fsdp.context import Context, Sharing, context_mesh
from miles_fsdp.export import carried, whole_weights
from miles_fsdp.model import build_empty, fill, read_config
from miles_fsdp.optimizer import ShardedOptimizer, local
from miles_fsdp.options import FsdpOptions
from miles_fsdp.plugin import OWNER, chosen_by_user
from miles_fsdp.policy import Policy
from miles_fsdp.routing import Replays
from miles_fsdp.sharding import blocks_of, exchange_gradients, prepare, reshard, shard, shard_group, shard_mesh
from miles_fsdp.shared_attention import check_shareable
from miles_fsdp.state import hold_state, load_state, read_facts, save_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from miles_core.options import Config
    from miles_core.state import HeldState

_log = logging.getLogger(__name__)


class FsdpBackend:
    """:class:`miles_core.protocols.TrainingBackend` on PyTorch FSDP2: all ranks share the weights out.

    Ranks get rows of their own, or with ``--context-parallel-size`` that many get the same ones and share the tokens.

    Master weights, gradient sums and optimizer state are fp32 shards; layers are gathered in the compute precision as they run.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._options = config.get(FsdpOptions)
        self._device: torch.device | None = None
        self._sets: dict[str, Policy] = {}
        self._replays = Replays()
        self._parking: dict[str, Parking] = {}
        self._changed: set[str] = set()
        self._exact = False
        self._context: Context | None = None
        self._sharings: dict[int, Sharing] = {}
        self._data_group: dist.ProcessGroup | None = None
        self._offloaded = False

    @property
    def device(self) -> torch.device:
        """Where micro-batches go."""
        if self._device is None:
            self._device = _device(self._config.get(ClusterOptions).device)
        return self._device

    @property
    def parallel(self) -> Parallel:
        """This rank's place: every rank computes its loss and can export; context ranks, which follow each other, share rows."""
        rank, size = dist.get_rank(), dist.get_world_size()
        context, group = 1, dist.group.WORLD
        if self._context is not None:
            context, group = self._context.size, self._data_group
        return Parallel(
            rank=rank,
            world_size=size,
            data_rank=rank // context,
            data_size=size // context,
            data_group=group if size > context else None,
            reports=rank == 0,
            context_size=context,
        )

    def setup(self, spec: ModelSpec) -> None:
        """Build the actor, its copies and the optimizer from ``spec``.

        Raises:
            UsageError: checkpoint or sizes do not fit (M338, M340, M342, M343, M345, M580), or something is missing (M341, M435,
                M582).
        """
        self._spec = spec
        accelerator_of(self.device).use(self.device)
        self._compute = _precision(self._options.precision, self.device)
        self._exact = self._config.get(TrainingOptions).true_on_policy_mode and not spec.value_head
        if self._exact:
            check_place(self.device.type, OWNER)
        if self._options.compile:
            check_compiler(self.device.type, "--fsdp-compile", OWNER)
        self._mesh = shard_mesh(self.device.type, self._options.replicate_size)
        if self._options.context_parallel_size > 1:
            self._context, self._data_group = context_mesh(self.device.type, self._options.context_parallel_size)
        model_config = read_config(spec.checkpoint)
        self._announced = False
        weights = HfWeights(spec.weights or spec.checkpoint)
        self._dtypes = {name: tensor.dtype for name, tensor in HfWeights(spec.checkpoint).tensors.items()}
        actor = self._sets["actor"] = self._build(
            model_config, weights, trainable=True, invariant=self._exact, valued=spec.value_head
        )
        self._optimizer = ShardedOptimizer(
            self._config,
            actor.weights(),
            actor.masters,
            spec.train_steps,
            self.device,
            shard_group(self._mesh),
            compiled=self._options.compile and not self._options.cpu_offload,
        )
        sources = dict(spec.copy_sources)
        frozen = [*((name, sources.get(name, spec.checkpoint)) for name in spec.copies), *spec.models]
        for name, source in frozen:
            # Other models than the policy are compared with nothing that an engine computed.
            invariant = self._exact and name in spec.copies
            self._sets[name] = self._build(read_config(source), HfWeights(source), trainable=False, invariant=invariant)
            self._parking[name] = Parking()
            self._put_away(name)
        self._parking["actor"] = Parking()
        if self._config.get(RoutingOptions).replays and not spec.value_head:
            self._replays.of("actor", actor.model)

    def _build(
        self, model_config: Any, weights: HfWeights, *, trainable: bool, invariant: bool = False, valued: bool = False
    ) -> Policy:
        sharing = self._sharing(model_config)
        attentions = (INVARIANT,) if invariant else self._attentions(model_config)
        model = build_empty(model_config, attentions, with_value_head=valued)
        if self._config.get(TrainingOptions).qkv_format == "thd":
            check_packable(model)
        model.requires_grad_(trainable)
        blocks = blocks_of(model)
        prepare(blocks, recompute=trainable and self._options.gradient_checkpointing, compiled=self._options.compile)
        policy = Policy(model, compute=self._compute, context=self._context, sharing=sharing, compiled=self._options.compile)
        if self._is_sharded:
            shard(policy, blocks, self._mesh, cpu_offload=self._options.cpu_offload)
        home = torch.device("cpu") if self._options.cpu_offload else self.device
        # A frozen set is only ever computed with, so it needs no more than the compute precision.
        seed = self._config.get(TrainingOptions).seed
        fill(policy, weights, home, torch.float32 if trainable else self._compute, seed=seed)
        return policy

    def _sharing(self, model_config: Any) -> Sharing | None:
        """How context ranks share this model's attention; models with as many heads share process groups."""
        if self._context is None:
            return None
        check_shareable(model_config, self._context.size)
        heads = model_config.get_text_config().num_attention_heads
        if heads not in self._sharings:
            self._sharings[heads] = Sharing.of(self._context, heads, self.device.type)
        return self._sharings[heads]

    def _attentions(self, model_config: Any) -> tuple[str, ...]:
        """What this model's attention may run on: a frozen one of another architecture can differ from the actor."""
        wanted = self._options.attn_implementation
        if self._context is not None:
            return (SHARED,)
        announce, self._announced = not self._announced and dist.get_rank() == 0, True
        return choose_attention(
            wanted,
            chosen=chosen_by_user(self._config, "attn_implementation"),
            device=self.device,
            compute=self._compute,
            model_config=model_config,
            announce=announce,
        )

    def forward(
        self, micro_batches: Sequence[MicroBatch], request: OutputRequest, *, weights: str = "actor"
    ) -> list[ModelOutputs] | None:
        """Outputs without gradients, in the order given.

        Raises:
            RunError: there are no such weights, or they are offloaded (M431, M432).
        """
        policy = self._present(weights)
        self._fetch(weights)
        outputs = []
        with torch.no_grad(), self._replays.during(weights, policy.model, micro_batches, request) as replay:
            for batch in micro_batches:
                if replay is not None:
                    replay.start(batch, record=request.routes)
                outputs.append(ModelOutputs(*policy(batch, request, False)))
                if replay is not None and request.routes:
                    outputs[-1] = dataclasses.replace(outputs[-1], routes=replay.taken())
        reshard(policy)
        self._put_away(weights)
        return outputs

    def train_step(self, micro_batches: Sequence[MicroBatch], request: OutputRequest, loss: LossCallback) -> StepReport:
        """One optimizer step over all micro-batches; ranks exchange gradients in the last one only.

        Raises:
            RunError: the loss does not depend on the model (M430), or the actor is offloaded (M431).
        """
        assert micro_batches, "a step needs a micro-batch"
        policy = self._present("actor")
        last = len(micro_batches) - 1
        policy.masters.sums = last > 0 or self._optimizer.sums_gradients
        with self._replays.during("actor", policy.model, micro_batches, request) as replay:
            for i, batch in enumerate(micro_batches):
                if i in (0, last):
                    exchange_gradients(policy, i == last)
                if replay is not None:
                    replay.start(batch)
                self._backward(policy, batch, request, loss)
        norm, rate, skipped = self._optimizer.step()
        return StepReport(grad_norm=norm, learning_rates=(rate,), skipped=skipped)

    @staticmethod
    def _backward(policy: Policy, batch: MicroBatch, request: OutputRequest, loss: LossCallback) -> None:
        scalar = loss(batch, ModelOutputs(*policy(batch, request, request.entropy)))
        if not scalar.requires_grad:
            raise RunError(
                "M430",
                "the loss does not depend on the model's outputs",
                owner=OWNER,
                why="the loss returned a tensor without a gradient",
                fix="multiply masked terms by the log-probs' mask in place of leaving them out",
            )
        scalar.backward()  # type: ignore[no-untyped-call]

    def export_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The actor's weights, whole, under their HF names in the checkpoint's dtypes. Collective; all ranks yield.

        In ``--true-on-policy-mode`` they come in fp32 whatever the checkpoint has: an engine that serves rounded weights samples
        from another policy.
        """
        dtypes = dict.fromkeys(self._dtypes, torch.float32) if self._exact else self._dtypes
        return whole_weights(self._present("actor"), dtypes, self.device)

    def copy_weights(self, source: str, target: str) -> None:
        """Overwrite one named weight set by another; the optimizer's state stays. A copy has the compute precision only.

        Raises:
            RunError: there are no such weights, or the actor is offloaded (M431, M432).
        """
        policies = self._present(source), self._present(target)
        if source == target:
            return
        for name in (source, target):
            self._fetch(name)
        with torch.no_grad():
            for old, new in zip(policies[1].weights().values(), policies[0].weights().values(), strict=True):
                local(old).copy_(local(new))
            for stale, fresh in zip(policies[1].buffers(), policies[0].buffers(), strict=True):
                stale.copy_(fresh)
        policies[1].masters.refresh()
        for name in (source, target):
            self._put_away(name, unchanged=name == source)
        self._changed |= {target} - {"actor"}

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments.

        Raises:
            RunError: the actor is offloaded (M431).
        """
        self._present("actor")
        self._optimizer.reset()

    def save(self, directory: Path) -> None:
        """Save model, optimizer, step count, overwritten copies and this rank's RNG. Collective."""
        with self._saved() as (actor, copies):
            save_state(directory, actor, self._optimizer, copies)

    def hold(self, directory: Path) -> HeldState:
        """Copy to host memory what :meth:`save` writes. Collective."""
        with self._saved() as (actor, copies):
            return hold_state(directory, actor, self._optimizer, copies)

    @contextmanager
    def _saved(self) -> Iterator[tuple[Policy, dict[str, Policy]]]:
        """The actor and the overwritten copies, which make up a state."""
        actor, copies = self._present("actor"), sorted(self._changed)
        for name in copies:
            self._fetch(name)
        yield actor, {name: self._sets[name] for name in copies}
        for name in copies:
            self._put_away(name)

    def load(self, directory: Path) -> None:
        """Restore what :meth:`save` wrote, also on another number of ranks. Collective.

        Raises:
            UsageError: the state is not there, or of another model or optimizer (M344).
        """
        actor = self._present("actor")
        facts = read_facts(directory)
        copies = [name for name in facts["copies"] if name in self._sets]
        for name in copies:
            self._fetch(name)
        load_state(directory, facts, actor, self._optimizer, {name: self._sets[name] for name in copies})
        for name in copies:
            self._put_away(name, unchanged=False)
        self._changed = set(copies)

    def export_hf(self, directory: Path) -> None:
        """Write an HF directory, whole or not at all; tensors that are no parameter's stay those of the checkpoint. Collective."""
        to_host = self._options.state_dict_cpu_offload
        actor = self._present("actor")
        tensors = whole_weights(actor, self._dtypes, self.device)
        if not self._spec.value_head:
            tensors = itertools.chain(tensors, carried(actor, self._spec.weights or self._spec.checkpoint))
        finish = value_head.describe if self._spec.value_head else None
        write_hf(directory, self._spec.checkpoint, tensors, to_host=to_host, finish=finish)

    def offload(self) -> None:
        """Free the accelerator; without one, or with ``--fsdp-cpu-offload``, there is nothing to move."""
        if self._offloaded:
            return
        self._offloaded = True
        if not self._offloads:
            return
        weights = self._sets["actor"].weights().values()
        for param in weights:
            param.grad = None
        tensors = [local(param) for param in weights] + self._optimizer.storage()
        self._sets["actor"].masters.release()
        freed = self._parking["actor"].out(tensors)
        gc.collect()
        accelerator_of(self.device).release_cache()
        _log.debug("offloaded %d bytes", freed)

    def onload(self) -> None:
        """Undo :meth:`offload`."""
        self._parking["actor"].back()
        if self._offloaded and self._offloads:
            self._sets["actor"].masters.restore()
        self._offloaded = False

    def close(self) -> None:
        """Drop models and optimizer."""
        self._sets.clear()
        self._replays.clear()
        self._parking.clear()
        self.__dict__.pop("_optimizer", None)

    @property
    def _is_sharded(self) -> bool:
        """Whether FSDP moves the weights: between ranks, or between host and device."""
        return self._mesh.size() > 1 or self._options.cpu_offload

    @property
    def _offloads(self) -> bool:
        return self.device.type == "cuda" and not self._options.cpu_offload

    def _present(self, name: str) -> Policy:
        """A weight set that is there to be used."""
        if name not in self._sets:
            known = ", ".join(sorted(self._sets)) or "none"
            raise RunError("M432", f"there are no weights named {name}", owner=OWNER, why=f"set up: {known}")
        if name == "actor" and self._offloaded:
            raise RunError("M431", "the actor is offloaded", owner=OWNER, fix="call onload() first")
        return self._sets[name]

    def _fetch(self, name: str) -> None:
        if name != "actor":
            self._parking[name].back()

    def _put_away(self, name: str, *, unchanged: bool = True) -> None:
        """Keep a frozen set in host memory while nobody uses it."""
        if name != "actor" and self._offloads:
            self._parking[name].out([local(param) for param in self._sets[name].weights().values()], unchanged=unchanged)


def _device(wanted: str) -> torch.device:
    groups = dist.get_backend_config() if dist.is_initialized() else ""
    return rank_device(dist.get_rank() if dist.is_initialized() else 0, wanted, groups)


def _precision(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if wanted == "fp32" else torch.bfloat16
