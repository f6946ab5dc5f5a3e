"""Truncated importance sampling: the engine that sampled computes other probabilities than the trainer.

Papers: Yao et al. 2025, Your Efficient RL Framework Secretly Brings You Off-Policy RL Training; Ionides 2008, Truncated Importance
Sampling; IcePop (Ling team 2025) for the mask; Liu et al. 2025, When Speed Kills Stability, for sequence levels.

Formula, per token, with w the ratio of ``weights.py``, between the bounds l = ``--tis-clip-low`` and h = ``--tis-clip``::

    L' = clip(w, l, h) L                --tis-mode truncate
    L' = w [l <= w <= h] L              --tis-mode mask

Metrics, per token: ``tis`` (w), ``tis_clipfrac`` (1 where w was changed), ``tis_abs`` (|w - 1|).

Assumptions: w is a constant. The old log-probs were computed by the trainer.

Omissions: no normalisation of the weights over a batch, which would make a sample's loss depend on the others'.
"""

from __future__ import annotations

import torch

from miles_algos.corrections.weights import mismatch_ratio
from miles_algos.losses.log_ratio import masked
from miles_algos.options import TisOptions
from miles_core.protocols import LossInputs


class Tis:
    """Weights the policy-gradient terms."""

    def __init__(self, options: TisOptions) -> None:
        self.low, self.high = options.tis_clip_low, options.tis_clip
        self.level, self.mode = options.tis_level, options.tis_mode
        if not 0 <= self.low <= self.high:
            raise ValueError(f"tis_clip_low {self.low} and tis_clip {self.high} are not in order")

    def __call__(self, policy: torch.Tensor, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Weighted terms, ``[N]``, and metrics."""
        ratio = mismatch_ratio(inputs, self.level)
        if self.mode == "mask":
            weight = torch.where((ratio >= self.low) & (ratio <= self.high), ratio, 0)
        else:
            weight = ratio.clamp(self.low, self.high)
        changed = masked((weight != ratio).to(ratio.dtype), inputs.mask)
        return policy * weight, {"tis": ratio, "tis_clipfrac": changed, "tis_abs": (ratio - 1).abs()}
