"""The clipped policy-gradient loss of PPO, with KL and entropy terms.

Papers: Schulman et al. 2017, PPO, arXiv:1707.06347, equation 7; Ye et al. 2020, dual clip, arXiv:1912.09729, equation 5;
Yu et al. 2025, DAPO, arXiv:2503.14476, the separate upper clip; Shao et al. 2024, GRPO, arXiv:2402.03300, the KL term.

Formula, per token, with rho = pi / pi_old and advantage A::

    L  = max(-rho A, -clip(rho, 1 - eps_clip, 1 + eps_clip_high) A)
    L  = min(L, -c A)  where A < 0                      with --eps-clip-c c
    L += kl_loss_coef * KL(pi || pi_ref) - entropy_coef * H(pi)

Metrics, per token: ``pg_loss`` (L before KL and entropy), ``pg_clipfrac`` (1 where the clipped term won), ``ppo_kl``
(log pi_old - log pi); ``kl_loss`` and ``entropy_loss`` when those are on.

Assumptions: all log-probs are of the temperature that was sampled with. The exponent of rho is clamped to +-20. Masked tokens
are 0 and pass no gradient even when they hold infinities. NaN at a token that is trained on stays NaN.

Omissions: no importance weights against the engine's log-probs, no sequence-level ratio.
"""

from __future__ import annotations

import torch

from miles_algos.losses.kl import kl_terms
from miles_algos.losses.log_ratio import log_ratio, masked, safe_exp
from miles_algos.options import PolicyLossOptions
from miles_core.options import Config
from miles_core.protocols import LossInputs, LossOutputs


class PolicyLoss:
    """Implements :class:`miles_core.protocols.Loss`.

    ``zero_advantage_is_zero_loss`` tells core that a sample whose advantage is 0 adds neither loss nor gradient.
    """

    def __init__(self, config: Config) -> None:
        options = config.get(PolicyLossOptions)
        self.low = 1.0 - options.eps_clip
        self.high = 1.0 + (options.eps_clip if options.eps_clip_high is None else options.eps_clip_high)
        self.dual = options.eps_clip_c
        self.kl_loss = options.use_kl_loss
        self.kl_coef = options.kl_loss_coef
        self.kl_kind = options.kl_loss_type
        self.weigh_kl = options.use_unbiased_kl
        self.entropy_coef = options.entropy_coef
        if self.dual is not None and not self.dual > 1:
            raise ValueError(f"eps_clip_c must be more than 1, not {self.dual}")
        self.zero_advantage_is_zero_loss: bool = not self.kl_loss and self.entropy_coef == 0
        needs = {"old_log_probs", "advantages"}
        if self.kl_loss:
            needs.add("ref_log_probs")
        if self.entropy_coef != 0:
            needs.add("entropy")
        self.needs: frozenset[str] = frozenset(needs)

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Loss and metrics of each token, ``[N]``; see the module for the formula."""
        mask = inputs.mask
        assert inputs.advantages is not None
        advantages = masked(inputs.advantages, mask)
        exponent = log_ratio(inputs.log_probs, inputs.old_log_probs, mask)
        ratio = safe_exp(exponent)

        plain = -ratio * advantages
        clipped = -ratio.clamp(self.low, self.high) * advantages
        policy = torch.maximum(plain, clipped)
        if self.dual is not None:
            policy = torch.where(advantages < 0, torch.minimum(policy, -self.dual * advantages), policy)
        metrics = {
            "pg_loss": policy.detach(),
            "pg_clipfrac": (clipped > plain).to(policy.dtype),
            "ppo_kl": -exponent.detach(),
        }

        loss = policy
        if self.kl_loss:
            assert inputs.ref_log_probs is not None
            kl = kl_terms(self.kl_kind, inputs.log_probs, inputs.ref_log_probs, mask, ratio if self.weigh_kl else None)
            metrics["kl_loss"] = kl.detach()
            loss = loss + self.kl_coef * kl
        if self.entropy_coef != 0:
            assert inputs.entropy is not None
            entropy = masked(inputs.entropy, mask)
            metrics["entropy_loss"] = entropy.detach()
            loss = loss - self.entropy_coef * entropy
        return LossOutputs(loss=loss, metrics=metrics)
