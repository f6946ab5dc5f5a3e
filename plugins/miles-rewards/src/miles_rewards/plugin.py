"""What miles-rewards offers, and the checks of its options. Standard library and miles_core only."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence

from miles_core.config import DataOptions, PluginOptions, RewardOptions
from miles_core.errors import UsageError
from miles_core.plugins import RewardRecord, hookimpl
from miles_core.plugins.events import Configure

DISTRIBUTION = "miles-rewards"
LABELLED = frozenset({"exact", "math"})


@hookimpl
def miles_reward() -> Sequence[RewardRecord]:
    return [
        RewardRecord(
            name="exact",
            create="miles_rewards.exact:ExactReward",
            summary="1.0 when the whole response is the label",
        ),
        RewardRecord(
            name="math",
            create="miles_rewards.mathematics.reward:MathReward",
            summary="1.0 when the last \\boxed{} equals the label, by value",
        ),
    ]


@hookimpl
def miles_configure(event: Configure) -> None:
    """Report options that no grading could work with."""
    reward = event.config.get(RewardOptions)
    chosen = event.config.get(PluginOptions).rm_type
    if chosen is None or reward.custom_rm_path is not None or chosen.rpartition(":")[2] not in LABELLED:
        return
    owner = f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    if event.config.get(DataOptions).label_key is None:
        event.error(
            UsageError(
                "M239",
                f"reward {chosen} has nothing to compare with",
                owner=owner,
                why="--label-key is not given, so no sample has a label",
                fix="name the key of the ground truth: --label-key answer",
            )
        )
    if not 0 < reward.reward_timeout < math.inf:
        event.error(
            UsageError("M238", f"--reward-timeout is {reward.reward_timeout}", owner=owner, fix="give seconds, more than 0")
        )
    if reward.reward_workers < 1:
        event.error(UsageError("M238", f"--reward-workers is {reward.reward_workers}", owner=owner, fix="give 1 or more"))
