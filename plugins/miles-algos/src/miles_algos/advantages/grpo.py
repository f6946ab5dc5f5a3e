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

from miles_algos.options import GroupRewardOptions

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.protocols import AdvantageInputs, AdvantageOutputs

STD_EPSILON = 1e-6


class Grpo:
    """Implements :class:`miles_core.protocols.Advantage`."""

    needs: frozenset[str] = frozenset()

    def __init__(self, config: Config) -> None:
        options = config.get(GroupRewardOptions)
        self.normalise = not options.disable_rewards_normalization
        self.divide_by_std = not options.disable_grpo_std_normalization

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Rewards relative to their group, in double precision and in the order given.

        Raises:
            ValueError: lengths differ, or a reward is not a finite number (which would spoil its siblings').
        """
        if len(rewards) != len(groups):
            raise ValueError(f"{len(rewards)} rewards for {len(groups)} group numbers")
        if not all(map(math.isfinite, rewards)):
            raise ValueError("a reward is not a finite number")
        if not self.normalise:
            return [float(r) for r in rewards]
        members: dict[int, list[int]] = {}
        for position, group in enumerate(groups):
            members.setdefault(group, []).append(position)
        shaped = [0.0] * len(rewards)
        for positions in members.values():
            relative = group_relative([float(rewards[p]) for p in positions], self.divide_by_std)
            for position, value in zip(positions, relative, strict=True):
                shaped[position] = value
        return shaped

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        """The shaped reward of each sample at each of its tokens, ``[N]``."""
        # Only training ranks come here; the rollout manager, which shapes the rewards, need not load torch.
        import torch

        from miles_core.protocols import AdvantageOutputs

        lengths = torch.as_tensor(inputs.lengths, dtype=torch.int64, device=inputs.rewards.device)
        advantages = inputs.rewards.repeat_interleave(lengths)
        return AdvantageOutputs(advantages=advantages, returns=advantages)


def group_relative(rewards: Sequence[float], divide_by_std: bool) -> list[float]:
    """Deviations of one group's rewards from their mean, in units of their standard deviation if asked for."""
    # The mean of equal numbers may differ from them in the last bit, which the division would blow up.
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [r - mean for r in rewards]
    if not divide_by_std:
        return centred
    std = math.sqrt(math.fsum(c * c for c in centred) / (len(rewards) - 1))
    return [c / (std + STD_EPSILON) for c in centred]
