"""Functions named by an option that take part in a loss: the loss itself, a correction, a reduction.

Each has a form of its own, in the terms of :class:`miles_core.protocols.LossInputs`, and the form that scripts for miles have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from miles_core.config import AlgorithmOptions
from miles_core.errors import MilesError, RunError
from miles_core.options import Config
from miles_core.plugins.adapters import Arguments
from miles_core.plugins.causes import describe
from miles_core.protocols.loss import LossInputs, LossOutputs
from miles_core.training.ragged import broadcast, sample_sum

DEFAULT_NEEDS = frozenset({"old_log_probs", "advantages"})


class _Function:
    """A function with the flag that names it; what fails in it ends the run as one line."""

    flag = ""

    def __init__(self, function: Callable[..., Any], call: tuple[str, ...], name: str, config: Config) -> None:
        self.name = name
        self._function = function
        self._legacy = len(call) > 2
        self._takes_parallel_state = "parallel_state" in call
        self._args = Arguments(config)
        self._algorithm = config.get(AlgorithmOptions)

    def _called(self, *arguments: Any, **named: Any) -> Any:
        return self._guarded(self._function, *arguments, **named)

    def _guarded(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except MilesError:
            raise
        except Exception as error:
            raise self._wrong(f"failed with {describe(error)}", "repair the function") from error

    def _wrong(self, what: str, fix: str) -> RunError:
        return RunError("M423", f"the function {what}", owner=f"{self.flag} {self.name}", fix=fix)

    def _tensor(self, value: Any, like: torch.Tensor, what: str) -> torch.Tensor:
        if not isinstance(value, torch.Tensor) or value.shape != like.shape:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise self._wrong(f"returned {shape} as {what}", f"return a tensor of shape {tuple(like.shape)}, one entry per token")
        return value


class FunctionTis(_Function):
    """``fn(inputs, pg_loss) -> (pg_loss, metrics)``, or the keyword form with lists per sample that returns masks as well."""

    flag = "--custom-tis-function-path"

    def __call__(self, inputs: LossInputs, pg_loss: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Terms and metrics, ``[N]`` each. Tokens that a returned mask leaves out are 0."""
        if not self._legacy:
            answer = self._called(inputs, pg_loss)
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise self._wrong(f"returned {type(answer).__name__}", "return (pg_loss, metrics)")
            found, metrics = answer
            return self._tensor(found, pg_loss, "pg_loss"), self._metrics(metrics, pg_loss)
        lengths = list(inputs.lengths)
        assert inputs.rollout_log_probs is not None
        named: dict[str, Any] = {
            "args": self._args,
            "pg_loss": pg_loss,
            "train_log_probs": _parts(inputs.old_log_probs, lengths),
            "rollout_log_probs": _parts(inputs.rollout_log_probs, lengths),
            "loss_masks": _parts(inputs.mask, lengths),
            "total_lengths": lengths,
            "response_lengths": lengths,
        }
        if self._takes_parallel_state:
            named["parallel_state"] = None
        answer = self._called(**named)
        if not isinstance(answer, tuple) or len(answer) != 3:
            raise self._wrong(f"returned {type(answer).__name__}", "return (pg_loss, masks, metrics)")
        found, masks, metrics = answer
        sizes = [tuple(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__ for part in masks or ()]
        if sizes != [(length,) for length in lengths]:
            raise self._wrong(f"returned {sizes} as masks", f"return one mask for each response, of lengths {lengths}")
        mask = torch.cat(list(masks))
        return torch.where(mask != 0, self._tensor(found, pg_loss, "pg_loss") * mask, 0), self._metrics(metrics, pg_loss)

    def _metrics(self, metrics: Any, like: torch.Tensor) -> dict[str, torch.Tensor]:
        if not isinstance(metrics, Mapping):
            raise self._wrong(f"returned {type(metrics).__name__} as metrics", "return a dict of tensors, one entry per token")
        return {name: self._tensor(value, like, f"metric {name}").detach() for name, value in metrics.items()}


class FunctionReducer(_Function):
    """``fn(mask, lengths) -> weights``, or a factory of a linear function of the terms, whose weights are its derivative."""

    flag = "--custom-pg-loss-reducer-function-path"
    _verified = False

    def __call__(self, mask: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """The weight of each token's term in the sum over a micro-batch, ``[N]``; 0 where masked.

        Raises:
            RunError: M423, also for a reduction that is not linear.
        """
        if not self._legacy:
            return self._masked(self._tensor(self._called(mask, lengths), mask, "weights"), mask)
        if not mask.numel():
            return mask
        sizes = list(lengths)
        reduce = self._called(sizes, sizes, _parts(mask, sizes), self._algorithm.calculate_per_token_loss)
        if not callable(reduce):
            raise self._wrong(f"returned {type(reduce).__name__}", "return a function of the terms, [N] to a number")
        weights = self._masked(self._slope(reduce, torch.ones_like(mask))[1], mask)
        # Once, to read nothing back later; not of one term, of which much is linear.
        if not self._verified and int((mask != 0).sum()) > 1:
            self._verify(reduce, weights, mask)
            self._verified = True
        return weights

    def _verify(self, reduce: Callable[..., Any], weights: torch.Tensor, mask: torch.Tensor) -> None:
        """The same weights explain terms of both signs in another order: absolute value and maximum are linear only in places."""
        probe = torch.cos(torch.arange(mask.numel(), device=mask.device, dtype=mask.dtype) * 2 + 1) * mask
        total, slope = self._slope(reduce, probe)
        parts = weights * probe
        moved = (self._masked(slope, mask) - weights).abs().max() / weights.abs().max().clamp(min=1e-30)
        missed = (total - parts.sum()).abs() / parts.abs().sum().clamp(min=1e-30)
        if not float(torch.maximum(moved, missed)) <= 1e-4:
            raise self._wrong("returned a reduction that is not linear in the terms", "return a weighted sum of them")

    def _slope(self, reduce: Callable[..., Any], at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The reduction's value and derivative at some terms."""
        with torch.enable_grad():
            terms = at.detach().requires_grad_()
            total = self._guarded(reduce, terms)
            usable = isinstance(total, torch.Tensor) and total.numel() == 1 and total.requires_grad
            slope = torch.autograd.grad(total.reshape(()), terms, allow_unused=True)[0] if usable else None
            if slope is None:
                raise self._wrong("returned a reduction that makes no scalar of the terms", "return a weighted sum of them")
        return total.detach().reshape(()), slope

    @staticmethod
    def _masked(weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What a masked token weighs is of no account, and may be no number where a function divides by an empty mask."""
        return torch.where(mask != 0, weights, 0)


class FunctionLoss(_Function):
    """``fn(inputs)``, or ``fn(args, batch, logits, sum_of_sample_mean)``, as a :class:`miles_core.protocols.Loss`."""

    flag = "--custom-loss-function-path"
    zero_advantage_is_zero_loss = False

    def __init__(self, function: Callable[..., Any], call: tuple[str, ...], name: str, config: Config) -> None:
        super().__init__(function, call, name, config)
        default = DEFAULT_NEEDS | {"logits"} if self._legacy else DEFAULT_NEEDS
        if self._algorithm.disable_compute_advantages_and_returns:
            default -= {"advantages"}
        self.needs: frozenset[str] = frozenset(getattr(function, "needs", default))

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Loss and metrics of each token, ``[N]``."""
        if not self._legacy:
            answer = self._called(inputs)
            if isinstance(answer, LossOutputs):
                return answer
            return LossOutputs(self._tensor(answer, inputs.mask, "the loss"))
        weights, share = self._weights(inputs)
        arguments: list[Any] = [self._args, _lists(inputs), inputs.logits, lambda terms: (terms.flatten() * weights).sum()]
        if self._takes_parallel_state:
            arguments.insert(1, None)
        answer = self._called(*arguments)
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], torch.Tensor) or answer[0].numel() != 1:
            raise self._wrong("returned something else than (loss, metrics)", "return a scalar tensor and a dict of scalars")
        loss, metrics = answer
        scalars = {name: torch.as_tensor(value, device=share.device).detach().float() for name, value in dict(metrics).items()}
        found = {name: value.reshape(()) * share for name, value in scalars.items() if name != "loss"}
        # A scalar cannot be told apart into tokens: each carries a share that core's weights sum up to the whole.
        return LossOutputs(loss.reshape(()) * share, found)

    def _weights(self, inputs: LossInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of a sum over the micro-batch, before the division by samples or tokens; and what makes them sum to 1."""
        mask = inputs.mask
        if self._algorithm.calculate_per_token_loss:
            weights = mask
        elif self._algorithm.loss_length_divisor is not None:
            weights = mask / self._algorithm.loss_length_divisor
        else:
            weights = mask / broadcast(sample_sum(mask, inputs.lengths).clamp(min=1), inputs.lengths)
        count = (weights != 0).sum().clamp(min=1)
        return weights, torch.where(weights != 0, 1 / (weights * count), 0)


def _lists(inputs: LossInputs) -> dict[str, Any]:
    """The batch as a dict of lists, one entry per sample. Lengths are those of the responses."""
    lengths = list(inputs.lengths)
    fields = {
        "log_probs": inputs.old_log_probs,
        "loss_masks": inputs.mask,
        "ref_log_probs": inputs.ref_log_probs,
        "rollout_log_probs": inputs.rollout_log_probs,
        "advantages": inputs.advantages,
        "returns": inputs.returns,
        "values": inputs.old_values,
        "unconcat_tokens": inputs.tokens,
    }
    batch: dict[str, Any] = {name: _parts(value, lengths) for name, value in fields.items() if value is not None}
    return batch | {
        "response_lengths": lengths,
        "total_lengths": lengths,
        "current_log_probs": _parts(inputs.log_probs, lengths),
    }


def _parts(values: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """One tensor for each sample."""
    return list(torch.split(values, list(lengths)))
