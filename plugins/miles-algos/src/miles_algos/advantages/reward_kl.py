"""The KL penalty in the reward (``--kl-coef``): what a token pays for leaving the reference.

Paper: Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, arXiv:1909.08593, section 2.2.

Formula, per token, with k the estimate of ``--kl-loss-type`` (see ``losses/kl.py``) of the old policy against the reference::

    - kl_coef * k_t

Assumptions: constants throughout. Masked tokens pay as well when the caller asks for every token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from miles_algos.options import KlOptions, RewardKlOptions

if TYPE_CHECKING:
    import torch

    from miles_core.options import Config
    from miles_core.protocols import AdvantageInputs


class RewardKl:
    """Does nothing when the coefficient is 0. ``needs`` adds to those of the estimator."""

    def __init__(self, config: Config) -> None:
        self.coef = config.get(RewardKlOptions).kl_coef
        self.kind = config.get(KlOptions).kl_loss_type if self.coef else "k1"
        self.needs: frozenset[str] = frozenset({"old_log_probs", "ref_log_probs"}) if self.coef else frozenset()
        if not math.isfinite(self.coef):
            raise ValueError(f"kl_coef must be a finite number, not {self.coef}")

    def __call__(self, inputs: AdvantageInputs, *, every_token: bool = False) -> torch.Tensor:
        """The penalty of each token, ``[N]``; 0 at masked tokens unless ``every_token``."""
        import torch

        from miles_algos.losses.kl import kl_terms

        if not self.needs:
            return torch.zeros_like(inputs.mask)
        assert inputs.old_log_probs is not None
        assert inputs.ref_log_probs is not None
        mask = torch.ones_like(inputs.mask) if every_token else inputs.mask
        return -self.coef * kl_terms(self.kind, inputs.old_log_probs, inputs.ref_log_probs, mask)
