"""What every policy loss has beside its surrogate: corrections, a reduction of its own, KL and entropy terms.

Formula, per token, with L the surrogate::

    c(L) w + kl_loss_coef * KL(pi || pi_ref) - entropy_coef * H(pi)

where c are the corrections of ``corrections/`` and w the weight of ``--custom-pg-loss-reducer-function-path``, usually 1. Neither
touches the KL and entropy terms.

Metrics, per token: ``pg_loss`` (c(L)), ``ppo_kl`` (log pi_old - log pi), those of the corrections, and ``kl_loss`` and
``entropy_loss`` when those terms are on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from miles_algos.corrections import Corrections
from miles_algos.losses.kl import kl_terms
from miles_algos.losses.log_ratio import log_ratio, masked, safe_exp
from miles_algos.losses.reducer import Reducer
from miles_algos.options import EntropyOptions, KlLossOptions, KlOptions
from miles_core.options import Config
from miles_core.protocols import LossInputs, LossOutputs


class Terms:
    """Completes a surrogate. ``needs`` adds to those of the loss; ``zero_advantage_is_zero_loss`` is what it must say."""

    def __init__(self, config: Config) -> None:
        kl, entropy = config.get(KlLossOptions), config.get(EntropyOptions)
        self.kl_loss, self.kl_coef, self.weigh_kl = kl.use_kl_loss, kl.kl_loss_coef, kl.use_unbiased_kl
        self.kl_kind = config.get(KlOptions).kl_loss_type if kl.use_kl_loss else "k1"
        self.entropy_coef = entropy.entropy_coef
        self.corrections = Corrections(config)
        self.reducer = Reducer.of(config)
        self.zero_advantage_is_zero_loss = not self.kl_loss and self.entropy_coef == 0 and self.corrections.keeps_zero
        needs = {"old_log_probs", "advantages"} | self.corrections.needs
        if self.kl_loss:
            needs.add("ref_log_probs")
        if self.entropy_coef != 0:
            needs.add("entropy")
        self.needs: frozenset[str] = frozenset(needs)

    def __call__(
        self, inputs: LossInputs, surrogate: torch.Tensor, exponent: torch.Tensor, metrics: Mapping[str, torch.Tensor]
    ) -> LossOutputs:
        """Loss and metrics of each token, ``[N]``.

        Args:
            inputs: of the loss.
            surrogate: policy-gradient term with gradient, 0 where masked, ``[N]``.
            exponent: log of the ratio of current to old policy that the surrogate uses, ``[N]``.
            metrics: of the surrogate, ``[N]`` each.
        """
        policy, corrected = self.corrections(surrogate, inputs)
        found = {"pg_loss": policy.detach(), "ppo_kl": -exponent.detach(), **metrics, **corrected}
        if self.corrections:
            found["ois"] = safe_exp(exponent.detach())
        loss = policy if self.reducer is None else policy * self.reducer(inputs)
        if self.kl_loss:
            assert inputs.ref_log_probs is not None
            # The weight is that of the token, also where the surrogate's ratio is that of the sequence.
            weight = current_ratio(inputs) if self.weigh_kl else None
            kl = kl_terms(self.kl_kind, inputs.log_probs, inputs.ref_log_probs, inputs.mask, weight)
            found["kl_loss"] = kl.detach()
            loss = loss + self.kl_coef * kl
        if self.entropy_coef != 0:
            assert inputs.entropy is not None
            entropy = masked(inputs.entropy, inputs.mask)
            found["entropy_loss"] = entropy.detach()
            loss = loss - self.entropy_coef * entropy
        return LossOutputs(loss=loss, metrics=found)


def current_ratio(inputs: LossInputs) -> torch.Tensor:
    """``pi / pi_old`` of each token, with gradient, ``[N]``."""
    return safe_exp(log_ratio(inputs.log_probs, inputs.old_log_probs, inputs.mask))
