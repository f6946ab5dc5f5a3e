"""Options of the critic's loss."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class ValueLossOptions:
    """Value loss"""

    value_clip: float = option(
        0.2, flag="--value-clip", help="A value counts as moved by at most this from what it was before the rollout's first step."
    )
