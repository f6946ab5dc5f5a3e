"""Supervised fine-tuning: the negative log-likelihood of responses that come from the data.

Source: maximum likelihood; as used for instruction tuning by Ouyang et al. 2022, arXiv:2203.02155, section 3.5.

Formula, per token: ``L = -log pi``. Core averages it, first within each sample or over all tokens
(``--calculate-per-token-loss``).

Assumptions: the sampling temperature is left at 1, since it divides the logits in training too.

Omissions: no label smoothing, no z-loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from miles_algos.losses.log_ratio import masked
from miles_core.protocols import LossInputs, LossOutputs

if TYPE_CHECKING:
    from miles_core.options import Config


class SftLoss:
    """Implements :class:`miles_core.protocols.Loss`."""

    needs: frozenset[str] = frozenset()
    zero_advantage_is_zero_loss: bool = False

    def __init__(self, config: Config) -> None:
        del config

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Negative log-probs, ``[N]``; 0 where masked. No metrics besides the loss itself."""
        return LossOutputs(loss=-masked(inputs.log_probs, inputs.mask))
