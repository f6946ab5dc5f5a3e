"""The scalar that one optimizer step differentiates, and the sums behind its metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from miles_core.errors import RunError
from miles_core.protocols.loss import Loss, LossInputs, LossOutputs
from miles_core.training import mismatch
from miles_core.training.batch import MicroBatch, ModelOutputs
from miles_core.training.reduce import token_weights, weighted_sum
from miles_core.training.rows import StepCount
from miles_core.training.table import RowTable

WEIGHT = "weight"
"""Field of ``MicroBatch.data``: weights of :func:`miles_core.training.reduce.token_weights`."""
METRIC_WEIGHT = "metric_weight"
"""Field of ``MicroBatch.data``: the same for metrics, which stay means under ``--loss-length-divisor``; absent when equal."""
SAMPLE_WEIGHT = "sample_weight"
"""Field of ``MicroBatch.data``: weights of :func:`miles_core.training.reduce.sample_weights`."""
COMPARED = "compared"
"""Field of ``MicroBatch.data``: the mask, in the rows that have rollout log-probs."""

_INPUTS = ("rollout_log_probs", "ref_log_probs", "advantages", "returns", "old_values")


def step_weights(table: RowTable, count: StepCount, *, per_token: bool, divisor: int | None) -> dict[str, np.ndarray]:
    """The fields of weights of one optimizer step, ``[N + 1]`` each."""
    weights = {WEIGHT: token_weights(table, count, per_token=per_token, divisor=divisor)}
    if divisor is not None and not per_token:
        weights[METRIC_WEIGHT] = token_weights(table, count, per_token=False)
    return weights


class Objective:
    """A loss callback for one optimizer step.

    Sums stay on the device until the step is over. ``old_log_probs`` that a micro-batch does not carry are those of the forward
    pass itself, which is right in the first optimizer step of a rollout.

    Args:
        loss: per-token loss.
        compare: also sum how far the log-probs are from the old and from the rollout's.
        recompute: compute the loss anew in the backward pass instead of keeping its intermediate results.

    Attributes:
        terms: weighted sums of the loss (``loss``), of its metrics, and of ``entropy`` when the model gave it.
        gaps: ``old``, the sum of absolute differences from the old log-probs, and ``old_tokens``; also ``log_probs``, the sum of
            the samples' mean log-probs.
        mismatch: sums of :mod:`miles_core.training.mismatch` against the rollout's log-probs; None when nothing was compared.
    """

    def __init__(self, loss: Loss, *, compare: bool = False, recompute: bool = False) -> None:
        self._loss = loss
        self._recompute = recompute
        self._compare = compare
        self.terms: dict[str, torch.Tensor] = {}
        self.gaps: dict[str, torch.Tensor] = {}
        self.mismatch: dict[str, torch.Tensor] | None = None

    def __call__(self, micro_batch: MicroBatch, outputs: ModelOutputs) -> torch.Tensor:
        """The micro-batch's share of the step's loss.

        Raises:
            RunError: the loss returned tensors of a wrong shape, or other metrics than before (M412).
        """
        data, log_probs = micro_batch.data, outputs.log_probs
        if log_probs is None and outputs.values is not None:
            # A critic has no policy; its loss must not need one.
            log_probs = torch.zeros_like(outputs.values)
        assert log_probs is not None, "the backend returned no log-probs"
        current = log_probs.detach()
        given = {name: data[name] for name in _INPUTS if name in data}
        inputs = LossInputs(
            log_probs=log_probs,
            mask=data["mask"],
            lengths=micro_batch.lengths,
            old_log_probs=data.get("old_log_probs", current),
            values=outputs.values,
            entropy=outputs.entropy,
            logits=outputs.logits,
            tokens=micro_batch.targets,
            **given,
        )
        if self._recompute:
            result: LossOutputs = checkpoint(self._loss, inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            result = self._loss(inputs)
        terms = {"loss": result.loss, **result.metrics}
        self._check(result, terms, log_probs)
        if outputs.entropy is not None and "entropy" not in terms:
            terms["entropy"] = outputs.entropy
        scalar = weighted_sum(result.loss, data[WEIGHT])
        with torch.no_grad():
            weights = data.get(METRIC_WEIGHT, data[WEIGHT])
            sums = {name: scalar if name == "loss" else weighted_sum(term, weights) for name, term in terms.items()}
            self._add(self.terms, sums)
            if self._compare:
                self._measure(data, micro_batch.lengths, current)
        return scalar

    def _measure(self, data: dict[str, torch.Tensor], lengths: Sequence[int], log_probs: torch.Tensor) -> None:
        gaps = {"log_probs": weighted_sum(log_probs, data[SAMPLE_WEIGHT])}
        if "old_log_probs" in data:
            gaps["old"] = weighted_sum((log_probs - data["old_log_probs"]).abs(), data["mask"])
            gaps["old_tokens"] = data["mask"].sum()
        if COMPARED in data:
            found = mismatch.sums(log_probs, data["rollout_log_probs"], data[COMPARED], lengths)
            self.mismatch = mismatch.added(self.mismatch, found)
        self._add(self.gaps, gaps)

    @staticmethod
    def _add(sums: dict[str, torch.Tensor], more: dict[str, torch.Tensor]) -> None:
        for name, value in more.items():
            value = value.detach().to(torch.float64)
            sums[name] = sums[name] + value if name in sums else value

    def _check(self, result: LossOutputs, terms: dict[str, torch.Tensor], log_probs: torch.Tensor) -> None:
        why = ""
        wrong = {name: tuple(term.shape) for name, term in terms.items() if term.shape != log_probs.shape}
        if wrong:
            shown = ", ".join(f"{name} {shape}" for name, shape in wrong.items())
            why = f"it returned {shown} for {log_probs.shape[0]} response tokens"
        elif "loss" in result.metrics:
            why = "it has a metric named loss, which is core's"
        elif self.terms and terms.keys() - {"entropy"} != self.terms.keys() - {"entropy"}:
            why = f"its metrics changed from {sorted(self.terms)} to {sorted(terms)} between micro-batches"
        if why:
            raise RunError(
                "M412",
                f"the loss {type(self._loss).__qualname__} cannot be used",
                owner=type(self._loss).__module__,
                why=why,
                fix="return one term per response token, unreduced, and the same metrics for every input",
            )
