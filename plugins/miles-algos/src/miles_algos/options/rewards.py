"""Options of reward normalisation within a group."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class GroupRewardOptions:
    """Rewards within a group"""

    disable_rewards_normalization: bool = option(
        False, flag="--disable-rewards-normalization", help="Train on rewards as graded, not relative to their group."
    )


@dataclass(frozen=True)
class GroupStdOptions:
    """Spread of rewards within a group"""

    disable_grpo_std_normalization: bool = option(
        False,
        flag="--disable-grpo-std-normalization",
        help="Only subtract the group's mean reward; do not divide by its standard deviation.",
    )
