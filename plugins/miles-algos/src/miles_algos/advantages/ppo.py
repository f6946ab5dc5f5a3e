"""PPO: generalised advantage estimation on a critic's values.

Papers: Schulman et al. 2015, GAE, arXiv:1506.02438, equation 16; Schulman et al. 2017, PPO, arXiv:1707.06347.

Formula, over the unmasked tokens of a sample, numbered 1 .. M, with V_{M+1} = 0, r its reward and k_t the KL estimate of
``reward_kl.py``::

    rho_t   = -kl_coef k_t + [t = M] r
    delta_t = rho_t + gamma V_{t+1} - V_t
    A_t     = delta_t + gamma lambd A_{t+1}
    R_t     = A_t + V_t

Assumptions: rewards are as graded. Masked tokens are no actions: they are taken out before the recursion and have advantage and
return 0. A truncated response ends like any other: its reward counts, and no value stands for what it did not say.

Omissions: no whitening of returns; ``--normalize-advantages`` whitens the advantages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from miles_algos.advantages.distillation import TeacherPenalty
from miles_algos.advantages.groups import by_group
from miles_algos.advantages.reward_kl import RewardKl
from miles_algos.options import DiscountOptions, GaeOptions

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.protocols import AdvantageInputs, AdvantageOutputs


class Ppo:
    """Implements :class:`miles_core.protocols.Advantage`."""

    def __init__(self, config: Config) -> None:
        self.gamma, self.lambd = config.get(DiscountOptions).gamma, config.get(GaeOptions).lambd
        self.kl = RewardKl(config)
        self.penalty = TeacherPenalty(config)
        self.needs: frozenset[str] = frozenset({"values"}) | self.kl.needs | self.penalty.needs

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Rewards as they are.

        Raises:
            ValueError: as :func:`miles_algos.advantages.groups.by_group`.
        """
        return by_group(rewards, groups, None)

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        """Advantages and returns, ``[N]`` each; 0 at masked tokens."""
        import torch

        from miles_algos.advantages.returns import at_last_token, discounted
        from miles_core.protocols import AdvantageOutputs
        from miles_core.training.ragged import sample_sum

        assert inputs.values is not None
        kept = inputs.mask != 0
        counts = [int(count) for count in sample_sum(kept.long(), inputs.lengths).tolist()]
        rewards = (at_last_token(inputs.rewards, inputs.mask, inputs.lengths) + self.kl(inputs))[kept]
        values = inputs.values[kept].double()
        later = torch.zeros_like(values)
        later[:-1] = values[1:]
        ends = torch.as_tensor(counts, dtype=torch.int64, device=values.device).cumsum(0) - 1
        later[ends[ends >= 0]] = 0
        found = discounted(rewards + self.gamma * later - values, self.gamma * self.lambd, counts)
        advantages, returns = (torch.zeros_like(inputs.mask, dtype=torch.float64) for _ in range(2))
        advantages[kept], returns[kept] = found, found + values
        dtype = inputs.rewards.dtype
        return AdvantageOutputs(advantages=self.penalty(advantages.to(dtype), inputs), returns=returns.to(dtype))
