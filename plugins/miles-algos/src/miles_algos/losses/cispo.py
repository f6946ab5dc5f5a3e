"""CISPO: clip the importance weight, not the update.

Paper: MiniMax 2025, MiniMax-M1, arXiv:2506.13585, equations 4 and 5.

Formula, per token, with rho = pi / pi_old and sg a stopped gradient::

    L = -sg(clip(rho, 1 - eps_clip, 1 + eps_clip_high)) A log pi

and the terms of ``terms.py``. Every token keeps a gradient, however far its ratio is out.

Metrics, per token: ``pg_clipfrac`` (1 where the weight was cut).

Assumptions: averaged per token, as in the paper. With ``--eps-clip 1`` the weight has no lower bound, as in the paper too.

Omissions: no dual clip. At a token of probability 0 log pi is cut at -20.
"""

from __future__ import annotations

from miles_algos.losses.log_ratio import MAX_EXPONENT, log_ratio, masked, safe_exp
from miles_algos.losses.surrogate import clip_range
from miles_algos.losses.terms import Terms
from miles_core.options import Config
from miles_core.protocols import LossInputs, LossOutputs


class Cispo:
    """Implements :class:`miles_core.protocols.Loss`."""

    def __init__(self, config: Config) -> None:
        self.bounds = clip_range(config)
        self.terms = Terms(config)
        self.needs: frozenset[str] = self.terms.needs
        self.zero_advantage_is_zero_loss: bool = self.terms.zero_advantage_is_zero_loss

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Loss and metrics of each token, ``[N]``; see the module for the formula."""
        assert inputs.advantages is not None
        exponent = log_ratio(inputs.log_probs, inputs.old_log_probs, inputs.mask)
        ratio = safe_exp(exponent.detach())
        weight = ratio.clamp(*self.bounds)
        log_probs = masked(inputs.log_probs, inputs.mask)
        finite = log_probs.masked_fill(log_probs == -float("inf"), -MAX_EXPONENT)
        surrogate = -weight * masked(inputs.advantages, inputs.mask) * finite
        cut = masked((weight != ratio).to(surrogate.dtype), inputs.mask)
        return self.terms(inputs, surrogate, exponent, {"pg_clipfrac": cut})
