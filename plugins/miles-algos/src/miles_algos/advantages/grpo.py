"""GRPO: the reward of a response, relative to its siblings, is the advantage of each of its tokens.

Paper: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, section 4.1.2 (outcome supervision).

Formula, for the graded rewards r_1 .. r_n of one prompt::

    A_{i,t} = (r_i - mean(r)) / (std(r) + 1e-6)        std is unbiased (n - 1)

With ``--disable-grpo-std-normalization`` the division is left out (Dr. GRPO, arXiv:2503.20783); with
``--disable-rewards-normalization`` A_{i,t} = r_i.

Assumptions: siblings are recognised by their group number, not by position, so groups may be short or interleaved. Samples
that could not be graded are not part of the group. Removed and truncated samples are.

A group of equal rewards gives exactly 0. So does a group of one, whose mean is its own reward: there is no deviation to divide
by, and nothing to learn from.

Omissions: no KL term in the reward (GRPO has it in the loss, see ``losses/policy_loss.py``), no discount.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from miles_algos.advantages.distillation import TeacherPenalty
from miles_algos.advantages.groups import by_group, centred
from miles_algos.options import GroupRewardOptions, GroupStdOptions

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.protocols import AdvantageInputs, AdvantageOutputs

STD_EPSILON = 1e-6


class Grpo:
    """Implements :class:`miles_core.protocols.Advantage`."""

    def __init__(self, config: Config) -> None:
        self.normalise = not config.get(GroupRewardOptions).disable_rewards_normalization
        self.divide_by_std = not config.get(GroupStdOptions).disable_grpo_std_normalization
        self.penalty = TeacherPenalty(config)
        self.needs: frozenset[str] = self.penalty.needs

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Rewards relative to their group, in double precision and in the order given.

        Raises:
            ValueError: as :func:`miles_algos.advantages.groups.by_group`.
        """
        return by_group(rewards, groups, self._relative if self.normalise else None)

    def _relative(self, rewards: list[float]) -> list[float]:
        deviations = centred(rewards)
        if not self.divide_by_std:
            return deviations
        std = math.sqrt(math.fsum(d * d for d in deviations) / (len(rewards) - 1))
        return [d / (std + STD_EPSILON) for d in deviations]

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        """The shaped reward of each sample at each of its tokens, ``[N]``."""
        # Only training ranks come here; the rollout manager, which shapes the rewards, need not load torch.
        from miles_core.protocols import AdvantageOutputs
        from miles_core.training.ragged import broadcast

        returns = broadcast(inputs.rewards, inputs.lengths)
        return AdvantageOutputs(advantages=self.penalty(returns, inputs), returns=returns)
