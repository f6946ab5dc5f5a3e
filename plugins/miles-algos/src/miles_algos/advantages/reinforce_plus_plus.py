"""REINFORCE++: discounted returns of the reward and of every token's KL penalty, without a critic or a group.

Paper: Hu 2025, REINFORCE++, arXiv:2501.03262, section 3.

Formula, with r the sample's reward and k_t the KL estimate of ``reward_kl.py``::

    rho_t = -kl_coef k_t + [t is the last unmasked token] r
    A_t   = rho_t + gamma A_{t+1}

Advantages are whitened over the whole rollout, which is part of the algorithm: ``--normalize-advantages`` must be on.

Assumptions: rewards are as graded. The recursion runs over all response tokens: a masked one (a tool's answer) discounts, and pays
its penalty. A wholly masked sample gives the penalties alone, and nothing is trained on it.

Omissions: no clipping of rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from miles_algos.advantages.distillation import TeacherPenalty
from miles_algos.advantages.groups import by_group
from miles_algos.advantages.reward_kl import RewardKl
from miles_algos.options import DiscountOptions

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.protocols import AdvantageInputs, AdvantageOutputs


class ReinforcePlusPlus:
    """Implements :class:`miles_core.protocols.Advantage`."""

    def __init__(self, config: Config) -> None:
        self.gamma = config.get(DiscountOptions).gamma
        self.kl = RewardKl(config)
        self.penalty = TeacherPenalty(config)
        self.needs: frozenset[str] = self.kl.needs | self.penalty.needs

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Rewards as they are.

        Raises:
            ValueError: as :func:`miles_algos.advantages.groups.by_group`.
        """
        return by_group(rewards, groups, None)

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        """Discounted returns, ``[N]``."""
        from miles_algos.advantages.returns import at_last_token, discounted
        from miles_core.protocols import AdvantageOutputs

        rewards = at_last_token(inputs.rewards, inputs.mask, inputs.lengths) + self.kl(inputs, every_token=True)
        returns = discounted(rewards, self.gamma, inputs.lengths).to(inputs.rewards.dtype)
        return AdvantageOutputs(advantages=self.penalty(returns, inputs), returns=returns)
