"""The training backend: what differs between FSDP, Megatron and others. Everything they share is in core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    import torch.distributed as dist

    from miles_core.state import HeldState
    from miles_core.training.batch import MicroBatch, ModelOutputs


@dataclass(frozen=True)
class ModelSpec:
    """The model that a worker sets up.

    Attributes:
        checkpoint: HF directory with config, weights and tokenizer.
        weights: directory to take the weights from when not ``checkpoint``.
        train_steps: optimizer steps of the whole run, for the learning-rate schedule.
        copies: names of further frozen weight sets to hold besides ``actor``, such as ``ref``.
        copy_sources: HF directory that each copy is loaded from; absent means ``checkpoint``.
        models: further frozen models, of any architecture with the same vocabulary, as name and HF directory; such as
            ``teacher``. :meth:`TrainingBackend.forward` takes their names, :meth:`TrainingBackend.copy_weights` does not.
        value_head: replace the vocabulary head by one output, for a critic.
    """

    checkpoint: Path
    train_steps: int
    weights: Path | None = None
    copies: tuple[str, ...] = ()
    copy_sources: tuple[tuple[str, Path], ...] = ()
    models: tuple[tuple[str, Path], ...] = ()
    value_head: bool = False


@dataclass(frozen=True)
class Parallel:
    """This rank's place. A backend with model parallelism gives the same rows to all ranks of one data-parallel rank.

    Attributes:
        data_rank, data_size: place among the ranks that get different rows. Context parallelism is not part of it.
        data_group: process group over exactly those ranks, on which core reduces metrics; None when ``data_size`` is 1.
        computes_loss: whether ``forward`` returns outputs and the loss callback runs here (last pipeline stage).
        reports: true on exactly one rank of the run, which ``computes_loss``.
        context_size: ranks that share the tokens of a micro-batch, whose cap on tokens is that many times a rank's.
        exports: whether ``export_weights`` yields here (all ranks iterate; those that do not export yield nothing).
    """

    rank: int
    world_size: int
    data_rank: int
    data_size: int
    data_group: dist.ProcessGroup | None
    computes_loss: bool = True
    reports: bool = False
    exports: bool = True
    context_size: int = 1


@dataclass(frozen=True)
class OutputRequest:
    """What a forward pass must produce for every response token.

    ``temperature`` divides the logits, those that are given out too, before log-probs and entropy (never values). ``chunk_size`` is
    ``--log-probs-chunk-size``, in rows; -1 is off. ``routes`` asks a pass without gradients for the experts that the routers of a
    mixture of experts chose (``--use-routing-replay``).
    """

    log_probs: bool = True
    entropy: bool = False
    values: bool = False
    logits: bool = False
    temperature: float = 1.0
    chunk_size: int = -1
    routes: bool = False


@dataclass(frozen=True)
class StepReport:
    """An optimizer step. ``grad_norm`` is before clipping; a step with a non-finite norm is ``skipped``.

    ``metrics`` are further ones of the backend's own, over all ranks, which core logs as ``train/<name>``, a critic's as its own
    are; they must be right where ``computes_loss`` is true.
    """

    grad_norm: float
    learning_rates: tuple[float, ...]
    skipped: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


LossCallback: TypeAlias = "Callable[[MicroBatch, ModelOutputs], torch.Tensor]"
"""Given a micro-batch and its outputs, the scalar to differentiate. Core has normalised it already, see ``train_step``."""


class TrainingBackend(Protocol):
    """Built inside each training worker, after ``torch.distributed`` is initialised there.

    ``create(config)`` must be cheap; :meth:`setup` does the work. Micro-batches arrive on :attr:`device`. All data-parallel
    ranks get the same number of micro-batches in one call.
    """

    @property
    def device(self) -> torch.device:
        """Where micro-batches go."""
        ...

    @property
    def parallel(self) -> Parallel:
        """This rank's place; valid after :meth:`setup`."""
        ...

    def setup(self, spec: ModelSpec) -> None:
        """Build model, copies, optimizer and schedule.

        Raises:
            MilesError: the checkpoint does not fit.
        """
        ...

    def forward(
        self, micro_batches: Sequence[MicroBatch], request: OutputRequest, *, weights: str = "actor"
    ) -> list[ModelOutputs] | None:
        """Outputs without gradients, in the order given; None where ``computes_loss`` is false.

        Under context parallelism the outputs are gathered: every rank returns whole responses.

        With capability ``routing_replay`` a micro-batch that has ``routes`` is computed with those experts, here and in
        :meth:`train_step` with all that is recomputed in its backward pass; gates are those of the current weights. When
        ``request.routes`` is set every rank returns outputs, those that compute no loss with ``routes`` alone; a rank fills in
        the layers that it holds.
        """
        ...

    def train_step(self, micro_batches: Sequence[MicroBatch], request: OutputRequest, loss: LossCallback) -> StepReport:
        """One optimizer step over all micro-batches: forward, callback, backward for each, then clip, step, schedule.

        The gradient is the **sum** over micro-batches and over data-parallel ranks of the gradients of the callback's scalars:
        the callback has divided by the global count already. Under context parallelism every rank computes the same scalar
        from gathered outputs, and the gather's backward returns each rank its own slice, so that summing over context ranks
        counts every token once.
        """
        ...

    def export_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The actor's weights as whole tensors under their HF names, in the checkpoint's dtype, one at a time. Collective."""
        ...

    def copy_weights(self, source: str, target: str) -> None:
        """Overwrite one named weight set by another (``actor``, ``ref``, ...)."""
        ...

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments and its step count. The learning-rate schedule goes on. Collective."""
        ...

    def save(self, directory: Path) -> None:
        """Save model, optimizer, schedule and this rank's RNG for :meth:`load`. Collective; ``directory`` exists."""
        ...

    def load(self, directory: Path) -> None:
        """Restore what :meth:`save` wrote, also from another number of ranks. Collective."""
        ...

    def export_hf(self, directory: Path) -> None:
        """Write an HF directory (config, tokenizer, safetensors) that ``transformers`` loads. Collective."""
        ...

    def offload(self) -> None:
        """Free the accelerator: parameters, gradients and optimizer state move to host memory."""
        ...

    def onload(self) -> None:
        """Undo :meth:`offload`."""
        ...

    def close(self) -> None:
        """Release everything; the process ends afterwards."""
        ...


class HoldingBackend(TrainingBackend, Protocol):
    """A backend with capability ``async_save`` (``--async-save``)."""

    def hold(self, directory: Path) -> HeldState:
        """What :meth:`save` writes, copied to host memory, to be written later as the same files.

        Collective, and all that is collective in saving; ``directory`` exists.
        """
        ...
