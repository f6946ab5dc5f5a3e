"""Clipping, learning rate and step of megatron-core's optimizers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

from miles_core.config import TrainingOptions
from miles_core.numerics.adamw import CompiledAdamW
from miles_core.training.schedule import learning_rate
from miles_megatron.alone import Alone
from miles_megatron.build import shares_optimizer
from miles_megatron.moments import masters
from miles_megatron.options import MegatronOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from miles_core.options import Config


class Optimizer:
    """AdamW or SGD on fp32 master weights, which data-parallel ranks share out with the distributed optimizer.

    Args:
        config: the run's options.
        chunks: the wrapped parts of the model.
        train_steps: optimizer steps of the run.
        compute: precision of the parameters.

    Attributes:
        kind: ``adam`` or ``sgd``.
        finished: steps taken, skipped ones left out.
        inner: megatron-core's optimizer.
    """

    def __init__(self, config: Config, chunks: Sequence[Any], train_steps: int, compute: torch.dtype) -> None:
        options = config.get(MegatronOptions)
        self.kind = options.optimizer
        self.finished = 0
        self._options = config.get(TrainingOptions)
        self._train_steps = train_steps
        self._chunks = list(chunks)
        self._device = next(chunks[0].parameters()).device
        settings = OptimizerConfig(
            optimizer=self.kind,
            lr=self._options.lr,
            weight_decay=self._options.weight_decay,
            adam_beta1=self._options.adam_beta1,
            adam_beta2=self._options.adam_beta2,
            adam_eps=self._options.adam_eps,
            sgd_momentum=0.0,
            clip_grad=self._options.clip_grad,
            bf16=compute == torch.bfloat16,
            params_dtype=compute,
            use_distributed_optimizer=shares_optimizer(options),
            overlap_param_gather=options.overlap_param_gather,
        )
        self.inner: Any = get_megatron_optimizer(settings, self._chunks, use_gloo_process_groups=False)
        for each in self.parts:
            if not isinstance(each.optimizer, torch.optim.Adam):
                # Of a library.
                continue
            if options.compile:
                each.optimizer = CompiledAdamW.instead_of(each.optimizer)
                continue
            # Its one kernel reads everything once.
            for group in each.optimizer.param_groups:
                group["fused"], group["foreach"] = True, False

    def begin(self) -> None:
        """Drop the gradients."""
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self) -> tuple[float, float, bool]:
        """Clip and step. Collective.

        Returns:
            the gradient's norm before clipping, the learning rate, and whether the step was skipped for a non-finite norm.
        """
        rate = learning_rate(self._options, self._train_steps, self.finished)
        for group in self.inner.param_groups:
            group["lr"], group["weight_decay"] = rate, self._options.weight_decay
        if isinstance(self._chunks[0], Alone):
            norm = self._step_alone()
        else:
            self.inner.prepare_grads()
            norm = self._norm()
            if math.isfinite(norm):
                self._clip(norm)
                self.inner.step_with_ready_grads()
        skipped = not math.isfinite(norm)
        self.finished += not skipped
        return norm, rate, skipped

    def _clip(self, norm: float) -> None:
        scale = self._scale(norm)
        for each in self.parts:
            if isinstance(each.optimizer, CompiledAdamW):
                each.optimizer.scale = scale
            elif scale != 1.0:
                torch._foreach_mul_([param.grad for param in each.get_parameters() if param.grad is not None], scale)

    def _scale(self, norm: float) -> float:
        limit = self._options.clip_grad
        return limit / (norm + 1e-6) if 0 < limit < norm else 1.0

    def _step_alone(self) -> float:
        """Step from the gradients as they are, unless their norm, which is given back, is not finite; parameters are rounded to
        as their masters are updated."""
        found = {param: chunk.gradient(param) for chunk in self._chunks for param in chunk.params_with_grad}
        norm = float(_square(found.values(), self._device).sqrt())
        if math.isfinite(norm):
            for each in self.parts:
                pairs = [(param, main) for param, main in masters(each).items() if param in found]
                gradients = {main: found[param].view_as(main) for param, main in pairs}
                copies = {main: param.detach().view_as(main) for param, main in pairs if main.dtype != param.dtype}
                each.optimizer.scale = self._scale(norm)
                each.optimizer.step(gradients=gradients, rounded=copies)
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        return norm

    def _norm(self) -> float:
        """The 2-norm of all gradients, each counted once: fp32 within a tensor, fp64 over tensors and ranks. Collective.

        megatron-core's own waits for the device once a tensor where no library brings a kernel.
        """
        whole = torch.zeros((), dtype=torch.float64, device=self._device)
        # Ranks without a share of the experts, or of the rest, take part in the sum nevertheless.
        for each in self._chained:
            # The name changed with megatron-core 0.19.
            take = getattr(each, "get_grads_for_grad_norm", None) or each.get_main_grads_for_grad_norm
            gradients = take()
            square = _square(gradients, self._device)
            dist.all_reduce(square, group=each.get_grad_stats_parallel_group())
            whole += square
        return float(whole.sqrt())

    def reset(self) -> None:
        """Back to the state before the first step, in place; :attr:`finished`, which the schedule goes by, stays."""
        for each in self.parts:
            for group in each.param_groups:
                if "step" in group:
                    group["step"] = 0
        for tensor in self._state():
            tensor.zero_()

    def refresh(self) -> None:
        """Take the model's parameters, which something else has changed, for the master weights."""
        self.inner.reload_model_params()

    def storage(self) -> list[torch.Tensor]:
        """The tensors that the optimizer holds besides the model's parameters and gradients."""
        masters = [param.data for each in self.parts for group in each.param_groups for param in group["params"]]
        return masters + self._state()

    @property
    def parts(self) -> list[Any]:
        """megatron-core's optimizers of this rank: one of the experts', if there are any, and one of the rest."""
        return [part for part in self._chained if not getattr(part, "is_stub_optimizer", False)]

    @property
    def _chained(self) -> list[Any]:
        return list(getattr(self.inner, "chained_optimizers", [self.inner]))

    def _state(self) -> list[torch.Tensor]:
        entries = [entry for part in self.parts for entry in part.optimizer.state.values()]
        return [value for entry in entries for value in entry.values() if torch.is_tensor(value)]


def _square(gradients: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Of the 2-norm over tensors, in fp64; within a tensor fp32."""
    alike: dict[torch.dtype, list[torch.Tensor]] = {}
    for gradient in gradients:
        alike.setdefault(gradient.dtype, []).append(gradient)
    square = torch.zeros((), dtype=torch.float64, device=device)
    for each in alike.values():
        square += torch.stack(torch._foreach_norm(each, dtype=torch.float32)).double().square().sum()
    return square
