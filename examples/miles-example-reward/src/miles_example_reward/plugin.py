"""What this package offers. Standard library and miles_core only: miles reads it to show help, and to check options."""

from dataclasses import dataclass

from miles_core.options import option
from miles_core.plugins import RewardRecord, hookimpl


@dataclass(frozen=True)
class BrevityOptions:
    """Brevity"""

    tokens: int = option(64, help="Responses of at most this many tokens score 1.")


@hookimpl
def miles_reward() -> list[RewardRecord]:
    return [
        RewardRecord(
            name="brevity",
            create="miles_example_reward.brevity:BrevityReward",
            options=BrevityOptions,
            summary="1 for a short response, less the longer it is",
        )
    ]
