"""Rejection sampling by a mask: tokens or responses that engine and trainer disagree about are left out.

Papers: Liu et al. 2025, When Speed Kills Stability (masked importance sampling); Qwen3-Next and Ring-1T reports for the veto.

Formula, with w the ratio of ``weights.py`` and w_t its token-level one::

    L' = [l <= w <= h] L               l = --rs-lower-bound (1 / h), h = --rs-upper-bound
    L' = 0 in a whole response if w_t < --rs-veto-threshold at any of its unmasked tokens

Metrics, per token: ``rs_masked_fraction`` (1 where left out), and ``rs_veto_fraction`` with a threshold.

Assumptions: as in ``tis.py``. Denominators stay those of all tokens.

Omissions: rejected samples are not replaced by others.
"""

from __future__ import annotations

import torch

from miles_algos.corrections.weights import mismatch_ratio
from miles_algos.losses.log_ratio import masked
from miles_algos.options import RejectionOptions
from miles_core.protocols import LossInputs
from miles_core.training.ragged import broadcast, masked_sum


class Rejection:
    """Zeroes policy-gradient terms."""

    def __init__(self, options: RejectionOptions) -> None:
        self.level, self.high, self.veto = options.rs_level, options.rs_upper_bound, options.rs_veto_threshold
        self.low = 1.0 / self.high if options.rs_lower_bound is None else options.rs_lower_bound
        if not 0 <= self.low <= self.high:
            raise ValueError(f"rs_lower_bound {self.low} and rs_upper_bound {self.high} are not in order")

    def __call__(self, policy: torch.Tensor, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The terms that are kept, 0 for the others, ``[N]``, and metrics."""
        ratio = mismatch_ratio(inputs, self.level)
        left_out = (ratio < self.low) | (ratio > self.high)
        metrics = {}
        if self.veto is not None:
            far = (mismatch_ratio(inputs, "token") < self.veto).to(policy.dtype)
            vetoed = broadcast(masked_sum(far, inputs.mask, inputs.lengths), inputs.lengths) > 0
            left_out = left_out | vetoed
            metrics["rs_veto_fraction"] = masked(vetoed.to(policy.dtype), inputs.mask)
        metrics["rs_masked_fraction"] = masked(left_out.to(policy.dtype), inputs.mask)
        return torch.where(left_out, 0, policy), metrics
