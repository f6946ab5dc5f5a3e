"""A complete training backend around :class:`miles_core.testing.ToyModel`, on the CPU, data-parallel over gloo."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from miles_core.config import TrainingOptions
from miles_core.options import Config
from miles_core.protocols.backend import LossCallback, ModelSpec, OutputRequest, Parallel, StepReport
from miles_core.testing.toy_model import ToyModel, save_toy, toy_reference
from miles_core.training.batch import MicroBatch, ModelOutputs
from miles_core.training.logprobs import token_outputs_from_hidden


class ToyBackend:
    """Implements :class:`miles_core.protocols.TrainingBackend`; every rank holds the whole model.

    Args:
        config: learning rate, Adam's settings, ``--clip-grad``.
        dtype: of weights and computation; log-probs are float32, or float64 for float64.
        optimizer: ``adam`` or ``sgd``.

    Attributes:
        gradients: of the last optimizer step by parameter name, summed over micro-batches and ranks, before clipping.
        micro_batches: those of the last :meth:`train_step`.
        passes: for each :meth:`forward` so far, the name of its weights.
        optimizer_steps: made since :meth:`setup`.
    """

    def __init__(self, config: Config, *, dtype: torch.dtype = torch.float32, optimizer: str = "adam") -> None:
        self._options = config.get(TrainingOptions)
        self._dtype = dtype
        self._kind = optimizer
        self._sets: dict[str, ToyModel] = {}
        self.gradients: dict[str, torch.Tensor] = {}
        self.micro_batches: list[MicroBatch] = []
        self.passes: list[str] = []
        self.optimizer_steps = 0

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def parallel(self) -> Parallel:
        """Every rank is a data-parallel rank; one rank when ``torch.distributed`` is not initialised."""
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        group = dist.group.WORLD if size > 1 else None
        return Parallel(rank=rank, world_size=size, data_rank=rank, data_size=size, data_group=group, reports=rank == 0)

    def setup(self, spec: ModelSpec) -> None:
        """Load the actor and its copies."""
        model = toy_reference(spec.weights or spec.checkpoint)
        actor = self._sets["actor"] = (model.critic() if spec.value_head else model).to(self._dtype)
        sources = dict(spec.copy_sources)
        for name in spec.copies:
            self._sets[name] = toy_reference(sources.get(name, spec.checkpoint)).to(self._dtype).requires_grad_(False)
        for name, source in spec.models:
            self._sets[name] = toy_reference(source).to(self._dtype).requires_grad_(False)
        if self._kind == "sgd":
            self._optimizer: torch.optim.Optimizer = torch.optim.SGD(actor.parameters(), lr=self._options.lr)
        else:
            self._optimizer = torch.optim.AdamW(
                actor.parameters(),
                lr=self._options.lr,
                betas=(self._options.adam_beta1, self._options.adam_beta2),
                eps=self._options.adam_eps,
                weight_decay=self._options.weight_decay,
            )

    def forward(
        self, micro_batches: Sequence[MicroBatch], request: OutputRequest, *, weights: str = "actor"
    ) -> list[ModelOutputs] | None:
        """Outputs without gradients."""
        self.passes.append(weights)
        with torch.no_grad():
            return [self._outputs(self._sets[weights], batch, request) for batch in micro_batches]

    def train_step(self, micro_batches: Sequence[MicroBatch], request: OutputRequest, loss: LossCallback) -> StepReport:
        """One optimizer step over all micro-batches."""
        self.micro_batches = list(micro_batches)
        model = self._sets["actor"]
        self._optimizer.zero_grad()
        for batch in micro_batches:
            torch.autograd.backward(loss(batch, self._outputs(model, batch, request)))
        gradients = {}
        for name, parameter in model.named_parameters():
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            if self.parallel.data_group is not None:
                dist.all_reduce(gradient, group=self.parallel.data_group)
            parameter.grad = gradient
            gradients[name] = gradient.clone()
        self.gradients = gradients
        limit = self._options.clip_grad or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
        finite = norm < float("inf")
        if finite:
            self._optimizer.step()
            self.optimizer_steps += 1
        return StepReport(grad_norm=norm, learning_rates=(self._options.lr,), skipped=not finite)

    def _outputs(self, model: ToyModel, batch: MicroBatch, request: OutputRequest) -> ModelOutputs:
        hidden = model.response_hidden(batch)
        return token_outputs_from_hidden(hidden, model.head, batch.targets, request, entropy_grad=request.entropy)

    def export_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The actor's weights, in float32."""
        for name, tensor in self._sets["actor"].state_dict().items():
            yield name, tensor.detach().float()

    def copy_weights(self, source: str, target: str) -> None:
        """Overwrite one named weight set by another."""
        self._sets[target].load_state_dict(self._sets[source].state_dict())

    def reset_optimizer(self) -> None:
        """Drop Adam's moments."""
        self._optimizer.state.clear()

    def save(self, directory: Path) -> None:
        """Save weights and optimizer; all ranks hold the same."""
        if self.parallel.rank == 0:
            models = {name: model.state_dict() for name, model in self._sets.items()}
            torch.save({"models": models, "optimizer": self._optimizer.state_dict()}, directory / "toy.pt")
        if dist.is_initialized():
            dist.barrier()

    def load(self, directory: Path) -> None:
        """Restore what :meth:`save` wrote."""
        state: dict[str, Any] = torch.load(directory / "toy.pt")
        for name, weights in state["models"].items():
            if name in self._sets:
                self._sets[name].load_state_dict(weights)
        self._optimizer.load_state_dict(state["optimizer"])

    def export_hf(self, directory: Path) -> None:
        """Write a toy checkpoint."""
        if self.parallel.rank == 0:
            save_toy(directory, copy.deepcopy(self._sets["actor"]))
        if dist.is_initialized():
            dist.barrier()

    def offload(self) -> None:
        """Nothing: there is no accelerator to free."""

    def onload(self) -> None:
        """Nothing, as for :meth:`offload`."""

    def close(self) -> None:
        """Drop the models."""
        self._sets.clear()
