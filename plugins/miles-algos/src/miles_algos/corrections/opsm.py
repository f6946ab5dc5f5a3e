"""Off-policy sequence masking: a bad response that the policy has already moved away from teaches nothing more.

Paper: DeepSeek-AI 2025, DeepSeek-V3.2, arXiv:2512.02556, section 3.1 (keep the policy near its samples).

Formula, with m the mask of a response and M its sum::

    s  = sum_t m_t (log pi_old,t - log pi_t) / M
    L' = 0 at tokens with A_t < 0 of a response with s > --opsm-delta

Metrics, per token: ``opsm_clipfrac`` (1 where left out).

Assumptions: pi is the policy of this optimizer step, so nothing is left out in a rollout's first one unless the old policy is
the engine's. Denominators stay those of all tokens.

Omissions: none of the paper's other masks.
"""

from __future__ import annotations

import torch

from miles_algos.losses.log_ratio import log_ratio, masked
from miles_core.protocols import LossInputs
from miles_core.training.ragged import broadcast, masked_mean


class Opsm:
    """Zeroes policy-gradient terms."""

    def __init__(self, delta: float) -> None:
        self.delta = delta

    def __call__(self, policy: torch.Tensor, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The terms that are kept, 0 for the others, ``[N]``, and metrics."""
        assert inputs.advantages is not None
        moved = log_ratio(inputs.old_log_probs, inputs.log_probs.detach(), inputs.mask)
        far = broadcast(masked_mean(moved, inputs.mask, inputs.lengths), inputs.lengths) > self.delta
        left_out = far & (masked(inputs.advantages, inputs.mask) < 0)
        return torch.where(left_out, 0, policy), {"opsm_clipfrac": left_out.to(policy.dtype)}
