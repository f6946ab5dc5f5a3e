"""SAPO: a soft gate in the place of PPO's clip.

Paper: Gao et al. 2025, Soft Adaptive Policy Optimization, arXiv:2511.20347, equations 5 and 6.

Formula, per token, with rho = pi / pi_old, tau = tau_pos where A > 0 and tau_neg elsewhere::

    f(rho) = 4 / tau * sigmoid(tau (rho - 1))
    L      = -f(rho) A

and the terms of ``terms.py``. On policy f' is 1: the gradient is the policy gradient. It fades smoothly as the ratio leaves 1, and
faster for negative advantages, whose updates spread over the whole vocabulary.

Metrics, per token: ``sapo_gate`` (f'(rho), from 1 on policy towards 0).

Assumptions: averaged per sample, as in the paper.

Omissions: no hard clip, no dual clip.
"""

from __future__ import annotations

import torch

from miles_algos.losses.log_ratio import log_ratio, masked, safe_exp
from miles_algos.losses.terms import Terms
from miles_algos.options import SoftGateOptions
from miles_core.options import Config
from miles_core.protocols import LossInputs, LossOutputs


class Sapo:
    """Implements :class:`miles_core.protocols.Loss`."""

    def __init__(self, config: Config) -> None:
        options = config.get(SoftGateOptions)
        self.tau_pos, self.tau_neg = options.sapo_tau_pos, options.sapo_tau_neg
        if not min(self.tau_pos, self.tau_neg) > 0:
            raise ValueError(f"sapo_tau_pos and sapo_tau_neg must be more than 0, not {self.tau_pos} and {self.tau_neg}")
        self.terms = Terms(config)
        self.needs: frozenset[str] = self.terms.needs
        self.zero_advantage_is_zero_loss: bool = self.terms.zero_advantage_is_zero_loss

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Loss and metrics of each token, ``[N]``; see the module for the formula."""
        assert inputs.advantages is not None
        advantages = masked(inputs.advantages, inputs.mask)
        exponent = log_ratio(inputs.log_probs, inputs.old_log_probs, inputs.mask)
        tau = torch.where(advantages > 0, self.tau_pos, self.tau_neg).to(exponent.dtype)
        gate = torch.sigmoid(tau * (safe_exp(exponent) - 1))
        slope = masked((4 * gate * (1 - gate)).detach(), inputs.mask)
        return self.terms(inputs, -4 / tau * gate * advantages, exponent, {"sapo_gate": slope})
