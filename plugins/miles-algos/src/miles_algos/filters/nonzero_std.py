"""Dynamic sampling: keep only the groups whose rewards differ.

Paper: Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.2.

Formula: keep if and only if std(r_1 .. r_n) > 1e-8, unbiased and in double precision.

A dropped group is counted as ``zero_std_<first reward, one decimal>``, or as ``ungraded`` when fewer than two of its samples
could be graded.

Assumptions: more than one sample per prompt, which the plugin checks before a run starts.

Omissions: prompts are not remembered, so one that is always solved is sampled again in the next epoch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from miles_core.protocols import Decision

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.samples import SampleGroup

TOLERANCE = 1e-8


class NonzeroStd:
    """Implements :class:`miles_core.protocols.Filter`."""

    def __init__(self, config: Config) -> None:
        del config

    def __call__(self, group: SampleGroup) -> Decision:
        """Keep a group whose graded rewards differ."""
        rewards = [float(sample.reward) for sample in group if sample.reward is not None]
        if len(rewards) < 2:
            return Decision(keep=False, reason="ungraded")
        mean = math.fsum(rewards) / len(rewards)
        variance = math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)
        if math.sqrt(variance) > TOLERANCE:
            return Decision(keep=True)
        # Adding 0.0 turns -0.0, which rounding makes of small negative rewards, into 0.0.
        return Decision(keep=False, reason=f"zero_std_{round(rewards[0], 1) + 0.0}")
