"""RLOO: the reward of a response, less the mean reward of its siblings.

Paper: Ahmadian et al. 2024, Back to Basics, arXiv:2402.14740, section 3.2 (REINFORCE leave-one-out).

Formula, for the graded rewards r_1 .. r_n of one prompt, and k_t the KL estimate of ``reward_kl.py``::

    A_{i,t} = r_i - mean(r_j, j != i) - kl_coef (k_t + k_{t+1} + ...)
            = n / (n - 1) * (r_i - mean(r)) - kl_coef (k_t + k_{t+1} + ...)

With ``--disable-rewards-normalization`` the mean is left in.

Assumptions: as in ``grpo.py``. A group of equal rewards, or of one, gives exactly 0 before the penalty. The paper's action is the
whole response, whose token losses are summed: so they are, up to a constant, with ``--loss-length-divisor 0``.

Omissions: the paper takes the penalty of the whole response into r_i and so into the siblings' baselines. Here a token answers for
its own penalty and those that follow, without a baseline: earlier ones do not depend on it, so that the expected gradient is the
same.
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


class Rloo:
    """Implements :class:`miles_core.protocols.Advantage`."""

    def __init__(self, config: Config) -> None:
        self.normalise = not config.get(GroupRewardOptions).disable_rewards_normalization
        self.kl = RewardKl(config)
        self.penalty = TeacherPenalty(config)
        self.needs: frozenset[str] = self.kl.needs | self.penalty.needs

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Rewards less those of the siblings, in double precision and in the order given.

        Raises:
            ValueError: as :func:`miles_algos.advantages.groups.by_group`.
        """
        return by_group(rewards, groups, _left_one_out if self.normalise else None)

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        """The shaped reward of each sample, with the KL penalties from each token on, ``[N]``."""
        from miles_algos.advantages.returns import discounted
        from miles_core.protocols import AdvantageOutputs
        from miles_core.training.ragged import broadcast

        returns = broadcast(inputs.rewards, inputs.lengths)
        if self.kl.needs:
            returns = returns + discounted(self.kl(inputs), 1.0, inputs.lengths).to(returns.dtype)
        return AdvantageOutputs(advantages=self.penalty(returns, inputs), returns=returns)


def _left_one_out(rewards: list[float]) -> list[float]:
    return [d * len(rewards) / (len(rewards) - 1) for d in centred(rewards)]
