"""Clipping and the optimizer over sharded parameters."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from miles_core.config import TrainingOptions
from miles_core.numerics.adamw import CompiledAdamW
from miles_core.training.schedule import learning_rate
from miles_fsdp.options import FsdpOptions

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_fsdp.masters import Masters


class ShardedOptimizer:
    """AdamW or SGD on this rank's shards, with gradient clipping and the learning-rate schedule.

    Both update each element by itself, so they run on the local tensors, without the cost of distributed dispatch. Compiled, AdamW
    clips and rounds on the way.

    Args:
        config: the run's options.
        parameters: named parameters or master weights, sharded or not, whose local storage is final.
        masters: which of them are master weights.
        train_steps: optimizer steps of the run.
        device: of the computation; the norm is reduced there.
        group: ranks that share the weights out, over which the norm is summed; None is this one alone.
        compiled: update by code that is compiled.

    Attributes:
        kind: ``adam`` or ``sgd``.
        finished: steps taken, skipped ones left out.
    """

    def __init__(
        self,
        config: Config,
        parameters: dict[str, torch.Tensor],
        masters: Masters,
        train_steps: int,
        device: torch.device,
        group: dist.ProcessGroup | None,
        *,
        compiled: bool = False,
    ) -> None:
        self.kind = config.get(FsdpOptions).optimizer
        self.finished = 0
        self._reset_at = 0
        self._options = options = config.get(TrainingOptions)
        self._train_steps = train_steps
        self._device, self._group = device, group
        self._parameters, self._masters = parameters, masters
        self._shards = {name: local(param).detach().requires_grad_() for name, param in parameters.items()}
        shards = [shard for shard in self._shards.values() if shard.numel()]
        self._optimizer: torch.optim.Optimizer | None = None
        if shards and self.kind == "sgd":
            self._optimizer = torch.optim.SGD(shards, lr=options.lr, weight_decay=options.weight_decay)
        elif shards:
            self._optimizer = (CompiledAdamW if compiled else functools.partial(torch.optim.AdamW, fused=True))(
                shards,
                lr=options.lr,
                betas=(options.adam_beta1, options.adam_beta2),
                eps=options.adam_eps,
                weight_decay=options.weight_decay,
            )

    @property
    def sums_gradients(self) -> bool:
        """Whether gradients of one micro-batch must go to the masters, too."""
        return not isinstance(self._optimizer, CompiledAdamW)

    def step(self) -> tuple[float, float, bool]:
        """Clip, step, round master weights to the parameters, and drop the gradients. Collective.

        Returns:
            the gradient's norm before clipping, the learning rate, and whether the step was skipped for a non-finite norm.
        """
        found = {name: self._masters.gradient(name, param) for name, param in self._parameters.items()}
        gradients = {name: local(gradient) for name, gradient in found.items() if gradient is not None}
        norm = self._norm(list(gradients.values()))
        rate = learning_rate(self._options, self._train_steps, self.finished)
        skipped = not math.isfinite(norm)
        if not skipped:
            limit = self._options.clip_grad
            self._update(gradients, rate, limit / (norm + 1e-6) if 0 < limit < norm else 1.0)
            self.finished += 1
        for param in self._parameters.values():
            param.grad = None
        self._masters.forget_gradients()
        return norm, rate, skipped

    def _norm(self, gradients: list[torch.Tensor]) -> float:
        """The 2-norm over all shards: fp32 within a tensor, fp64 over tensors and ranks."""
        square = torch.zeros((), dtype=torch.float64, device=self._device)
        for dtype in {gradient.dtype for gradient in gradients}:
            norms = torch._foreach_norm([gradient for gradient in gradients if gradient.dtype == dtype], dtype=torch.float32)
            square += torch.stack(norms).to(self._device, torch.float64).square().sum()
        if self._group is not None:
            dist.all_reduce(square, group=self._group)
        return float(square.sqrt())

    def _update(self, gradients: dict[str, torch.Tensor], rate: float, scale: float) -> None:
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if isinstance(self._optimizer, CompiledAdamW):
            taken = {name: self._shards[name] for name, gradient in gradients.items() if gradient.numel()}
            rounded = {shard: param for name, shard in taken.items() if (param := self._masters.parameter(name)) is not None}
            self._optimizer.scale = scale
            self._optimizer.step(gradients={shard: gradients[name] for name, shard in taken.items()}, rounded=rounded)
            return
        if scale != 1.0:
            torch._foreach_mul_(list(gradients.values()), scale)
        for name, gradient in gradients.items():
            self._shards[name].grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._masters.refresh()

    def reset(self) -> None:
        """Back to the state before the first step, in place; :attr:`finished`, which the schedule goes by, stays."""
        self._reset_at = self.finished
        if self._optimizer is not None:
            for entry in self._optimizer.state.values():
                for value in entry.values():
                    if torch.is_tensor(value):
                        value.zero_()

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """The state of each parameter, by name and field, as live local tensors; zeros where no step has been taken yet.

        ``step`` is a scalar; ``exp_avg`` and ``exp_avg_sq`` have the shard's shape.
        """
        if self.kind == "sgd":
            return {}
        found = {}
        for name, shard in self._shards.items():
            # A rank without rows of a parameter takes part in saving it nevertheless, hence the detour for empty shards.
            entry = self._optimizer.state[shard] if self._optimizer is not None and shard.numel() else {}
            if not entry:
                entry["step"] = torch.tensor(float(self.finished - self._reset_at), device=shard.device)
                entry["exp_avg"] = torch.zeros_like(shard)
                entry["exp_avg_sq"] = torch.zeros_like(shard)
            found[name] = entry
        return found

    def storage(self) -> list[torch.Tensor]:
        """The tensors that the optimizer holds besides the parameters."""
        if self._optimizer is None:
            return []
        return [t for entry in self._optimizer.state.values() for t in entry.values() if torch.is_tensor(t)]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a distributed tensor, sharing its memory; any other tensor itself."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()
