"""AdamW whose update is one compiled pass over memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from miles_core.numerics.compiler import allow_programs

BUNDLE = 8
"""Tensors of one shape that one call of the compiled update takes, at most."""


class CompiledAdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101, algorithm 2) that reads and writes each element once a step.

    Clipping, the cast of gradients and the rounding of parameters to those computed with, each a pass over memory of its own
    otherwise, happen on the way. State and arithmetic are those of ``torch.optim.AdamW``, either goes on from the other's state.
    Every shape is compiled once, in the first step.

    Args:
        params: fp32 tensors, or groups of them.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the second moment's root.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.scale = 1.0
        """What the gradients of the next step are multiplied by."""

    @classmethod
    def instead_of(cls, other: torch.optim.Optimizer) -> CompiledAdamW:
        """One that takes over the groups and the state of another AdamW, whichever tensors it was made to update."""
        made = cls([torch.zeros(())])
        made.param_groups, made.state = other.param_groups, other.state
        return made

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        *,
        gradients: Mapping[torch.Tensor, torch.Tensor] | None = None,
        rounded: Mapping[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """Update the parameters that have gradients.

        Args:
            closure: not taken: PyTorch's signature has it.
            gradients: of the parameters, in any precision; their ``grad`` by default.
            rounded: tensors, of the parameters' shapes, that the new values are rounded to.
        """
        assert closure is None, "a step does not evaluate the model"
        rounded = rounded or {}
        for group in self.param_groups:
            found = gradients if gradients is not None else {p: p.grad for p in group["params"] if p.grad is not None}
            taken = [param for param in group["params"] if param in found]
            if taken:
                self._update(group, taken, found, rounded)

    def _update(
        self,
        group: Mapping[str, Any],
        params: Sequence[torch.Tensor],
        gradients: Mapping[torch.Tensor, torch.Tensor],
        rounded: Mapping[torch.Tensor, torch.Tensor],
    ) -> None:
        entries = [self._entry(param) for param in params]
        steps = [entry["step"] for entry in entries]
        torch._foreach_add_(steps, 1.0)
        factors = self._factors(group, steps).unbind()
        update, betas, eps = _compiled(), tuple(float(beta) for beta in group["betas"]), float(group["eps"])
        # Alike are those that the same compiled code takes.
        alike: dict[Any, list[int]] = {}
        for i, param in enumerate(params):
            alike.setdefault((param.shape, gradients[param].dtype, param in rounded), []).append(i)
        # The device is at work on a bundle while the next is put together.
        for numbers in alike.values():
            for start in range(0, len(numbers), BUNDLE):
                bundle = []
                for i in numbers[start : start + BUNDLE]:
                    param, entry = params[i], entries[i]
                    tensors = (factors[i], param.detach(), entry["exp_avg"], entry["exp_avg_sq"], gradients[param])
                    bundle.append((*tensors, rounded[param]) if param in rounded else tensors)
                update(bundle, *betas, eps)

    def _factors(self, group: Mapping[str, Any], steps: Sequence[torch.Tensor]) -> torch.Tensor:
        """What gradient, parameter, update and second moment's root are multiplied by, ``[parameters, 4]``, fp32."""
        count = torch.stack(list(steps)).double()
        first, second = (1 - torch.pow(torch.full_like(count, float(beta)), count) for beta in group["betas"])
        rate = float(group["lr"])
        parts = [
            torch.full_like(count, self.scale),
            torch.full_like(count, 1 - rate * group["weight_decay"]),
            -rate / first,
            second.rsqrt(),
        ]
        return torch.stack(parts, 1).float()

    def _entry(self, param: torch.Tensor) -> dict[str, torch.Tensor]:
        entry: dict[str, torch.Tensor] = self.state[param]
        if not entry:
            entry["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            entry["exp_avg"] = torch.zeros_like(param)
            entry["exp_avg_sq"] = torch.zeros_like(param)
        return entry


def _update(bundle: Sequence[tuple[torch.Tensor, ...]], beta1: float, beta2: float, eps: float) -> None:
    for factors, param, first, second, gradient, *rounded in bundle:
        scaled = gradient.float() * factors[0]
        first.copy_(beta1 * first + (1 - beta1) * scaled)
        second.copy_(beta2 * second + (1 - beta2) * scaled * scaled)
        param.copy_(param * factors[1] + factors[2] * first / (second.sqrt() * factors[3] + eps))
        for copy in rounded:
            copy.copy_(param)


@functools.cache
def _compiled() -> Callable[..., None]:
    allow_programs()
    return torch.compile(_update, dynamic=False)
