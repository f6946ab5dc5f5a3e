"""GSPO: PPO's clipped loss with one ratio for a whole response.

Paper: Zheng et al. 2025, Group Sequence Policy Optimization, arXiv:2507.18071, equations 5 to 7.

Formula, with m the mask of a response y and M its sum::

    s   = exp(sum_t m_t (log pi_t - log pi_old,t) / M)  =  (pi(y) / pi_old(y)) ^ (1 / M)
    L_t = max(-s A_t, -clip(s, 1 - eps_clip, 1 + eps_clip_high) A_t)       at every token t of y

and the terms of ``terms.py``. The gradient goes through the mean, to every token of the response.

Metrics, per token: ``pg_clipfrac``; ``ppo_kl`` is the mean log-ratio of the response.

Assumptions: averaged per sample, which gives every response the same weight; the clip is far narrower than PPO's (3e-4 and 4e-4
in the paper), since a mean hardly moves. KL and entropy terms stay per token.

Omissions: no dual clip, no GSPO-token variant.
"""

from __future__ import annotations

from miles_algos.losses.log_ratio import log_ratio, masked, safe_exp
from miles_algos.losses.surrogate import clip_range, clipped
from miles_algos.losses.terms import Terms
from miles_core.options import Config
from miles_core.protocols import LossInputs, LossOutputs
from miles_core.training.ragged import broadcast, masked_mean


class GspoLoss:
    """Implements :class:`miles_core.protocols.Loss`."""

    def __init__(self, config: Config) -> None:
        self.bounds = clip_range(config)
        self.terms = Terms(config)
        self.needs: frozenset[str] = self.terms.needs
        self.zero_advantage_is_zero_loss: bool = self.terms.zero_advantage_is_zero_loss

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Loss and metrics of each token, ``[N]``; see the module for the formula."""
        assert inputs.advantages is not None
        by_token = log_ratio(inputs.log_probs, inputs.old_log_probs, inputs.mask)
        exponent = masked(broadcast(masked_mean(by_token, inputs.mask, inputs.lengths), inputs.lengths), inputs.mask)
        advantages = masked(inputs.advantages, inputs.mask)
        surrogate, cut = clipped(safe_exp(exponent), advantages, self.bounds)
        return self.terms(inputs, surrogate, exponent, {"pg_clipfrac": cut})
