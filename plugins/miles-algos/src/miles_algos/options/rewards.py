"""Options of reward shaping."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class GroupRewardOptions:
    """Rewards within a group"""

    disable_grpo_std_normalization: bool = option(
        False,
        flag="--disable-grpo-std-normalization",
        help="Only subtract the group's mean reward; do not divide by its standard deviation.",
    )
    disable_rewards_normalization: bool = option(
        False, flag="--disable-rewards-normalization", help="Train on rewards as graded: neither mean nor standard deviation."
    )
