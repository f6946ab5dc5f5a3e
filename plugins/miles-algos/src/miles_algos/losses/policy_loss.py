"""The clipped policy-gradient loss of PPO.

Papers: Schulman et al. 2017, PPO, arXiv:1707.06347, equation 7; Ye et al. 2020, dual clip, arXiv:1912.09729, equation 5;
Yu et al. 2025, DAPO, arXiv:2503.14476, the separate upper clip; Shao et al. 2024, GRPO, arXiv:2402.03300, the KL term.

Formula, per token, with rho = pi / pi_old and advantage A::

    L = max(-rho A, -clip(rho, 1 - eps_clip, 1 + eps_clip_high) A)
    L = min(L, -c A)  where A < 0                      with --eps-clip-c c

and the terms of ``terms.py``: corrections, KL, entropy.

Metrics, per token: ``pg_clipfrac`` (1 where the clipped term won), and those of ``terms.py``.

Assumptions: all log-probs are of the temperature that was sampled with. The exponent of rho is clamped to +-20. Masked tokens
are 0 and pass no gradient even when they hold infinities. NaN at a token that is trained on stays NaN.

Omissions: no sequence-level ratio, see ``gspo_loss.py``.
"""

from __future__ import annotations

from miles_algos.losses.log_ratio import log_ratio, masked, safe_exp
from miles_algos.losses.surrogate import clip_range, clipped
from miles_algos.losses.terms import Terms
from miles_algos.options import DualClipOptions
from miles_core.options import Config
from miles_core.protocols import LossInputs, LossOutputs


class PolicyLoss:
    """Implements :class:`miles_core.protocols.Loss`.

    ``zero_advantage_is_zero_loss`` tells core that a sample whose advantage is 0 adds neither loss nor gradient.
    """

    def __init__(self, config: Config) -> None:
        self.bounds = clip_range(config)
        self.dual = config.get(DualClipOptions).eps_clip_c
        if self.dual is not None and not self.dual > 1:
            raise ValueError(f"eps_clip_c must be more than 1, not {self.dual}")
        self.terms = Terms(config)
        self.needs: frozenset[str] = self.terms.needs
        self.zero_advantage_is_zero_loss: bool = self.terms.zero_advantage_is_zero_loss

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Loss and metrics of each token, ``[N]``; see the module for the formula."""
        assert inputs.advantages is not None
        exponent = log_ratio(inputs.log_probs, inputs.old_log_probs, inputs.mask)
        advantages = masked(inputs.advantages, inputs.mask)
        surrogate, cut = clipped(safe_exp(exponent), advantages, self.bounds, self.dual)
        return self.terms(inputs, surrogate, exponent, {"pg_clipfrac": cut})
