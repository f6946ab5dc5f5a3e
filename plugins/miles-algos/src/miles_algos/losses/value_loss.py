"""The clipped squared error of a critic.

Paper: Schulman et al. 2017, PPO, arXiv:1707.06347; the clip of the values is that of its reference implementation, as described
by Engstrom et al. 2020, "Implementation Matters in Deep RL", arXiv:2005.12729, section 3.

Formula, per token, with v the value now, v_old the one before the rollout's first step, and R the return::

    v_c = v_old + clip(v - v_old, -value_clip, value_clip)
    L   = max((v_c - R)^2, (v - R)^2)

Metrics, per token: ``value_loss`` (L) and ``value_clipfrac`` (1 where v moved by more than the clip).

Assumptions: v_old and R are constants. Masked tokens are 0 and pass no gradient even when they hold infinities. NaN at a token
that is trained on stays NaN.

Omissions: no factor 1/2, no whitening of returns, no entropy and no policy term: actor and critic are different models.
"""

from __future__ import annotations

import torch

from miles_algos.losses.log_ratio import masked
from miles_algos.options import ValueLossOptions
from miles_core.options import Config
from miles_core.protocols import LossInputs, LossOutputs


class ValueLoss:
    """Implements :class:`miles_core.protocols.Loss`, for a critic."""

    needs: frozenset[str] = frozenset({"old_values", "returns", "values"})

    def __init__(self, config: Config) -> None:
        self.clip = config.get(ValueLossOptions).value_clip
        if not self.clip > 0:
            raise ValueError(f"value_clip must be more than 0, not {self.clip}")

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Loss and metrics of each token, ``[N]``; see the module for the formula."""
        mask = inputs.mask
        assert inputs.values is not None
        assert inputs.old_values is not None
        assert inputs.returns is not None
        values, old, returns = (masked(part, mask) for part in (inputs.values, inputs.old_values, inputs.returns))
        moved = values - old
        clipped = old + moved.clamp(-self.clip, self.clip)
        loss = torch.maximum((clipped - returns).square(), (values - returns).square())
        metrics = {"value_loss": loss.detach(), "value_clipfrac": (moved.abs() > self.clip).to(loss.dtype)}
        return LossOutputs(loss=loss, metrics=metrics)
