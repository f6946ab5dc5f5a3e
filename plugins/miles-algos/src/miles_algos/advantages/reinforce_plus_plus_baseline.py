"""REINFORCE++ with a baseline: the reward less its group's mean, and every token's own KL penalty.

Paper: Hu 2025, REINFORCE++, arXiv:2501.03262, section 3 (the variant for several samples per prompt).

Formula, for the graded rewards r_1 .. r_n of one prompt, and k_t the KL estimate of ``reward_kl.py``::

    A_{i,t} = r_i - mean(r) - kl_coef k_t

With ``--disable-rewards-normalization`` the mean is left in. Advantages are whitened over the whole rollout, which is part of the
algorithm: ``--normalize-advantages`` must be on.

Assumptions: as in ``grpo.py``. A group of equal rewards, or of one, gives exactly 0 before the penalty.

Omissions: no division by the group's standard deviation, whose place the whitening takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from miles_algos.advantages.distillation import TeacherPenalty
from miles_algos.advantages.groups import by_group, centred
from miles_algos.advantages.reward_kl import RewardKl
from miles_algos.options import GroupRewardOptions

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.protocols import AdvantageInputs, AdvantageOutputs


class ReinforcePlusPlusBaseline:
    """Implements :class:`miles_core.protocols.Advantage`."""

    def __init__(self, config: Config) -> None:
        self.normalise = not config.get(GroupRewardOptions).disable_rewards_normalization
        self.kl = RewardKl(config)
        self.penalty = TeacherPenalty(config)
        self.needs: frozenset[str] = self.kl.needs | self.penalty.needs

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Rewards less their group's mean, in double precision and in the order given.

        Raises:
            ValueError: as :func:`miles_algos.advantages.groups.by_group`.
        """
        return by_group(rewards, groups, centred if self.normalise else None)

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        """The shaped reward of each sample, with each token's KL penalty, ``[N]``."""
        from miles_core.protocols import AdvantageOutputs
        from miles_core.training.ragged import broadcast

        returns = broadcast(inputs.rewards, inputs.lengths) + self.kl(inputs)
        return AdvantageOutputs(advantages=self.penalty(returns, inputs), returns=returns)
