"""Reward ``sum``: several rewards, each times its weight, added up.

Formula: the sum over ``--sum-of`` of weight times reward. Of a part that answers with a dict, ``--reward-key`` counts.

Contract: the score is a number; every part's own is told in its detail. A sample that one part cannot grade cannot be graded: the
first failure is the sample's.

Examples: ``--sum-of math format=0.2`` of a right answer in a right format is 1.2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from miles_core.config import PluginOptions, RewardOptions
from miles_core.options import Config
from miles_core.plugins import create as make
from miles_core.plugins.host import PluginHost
from miles_core.protocols import Reward
from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.options import SumOptions
from miles_rewards.parts import Part, parse_parts


class SumReward:
    """Implements :class:`miles_core.protocols.Reward`."""

    def __init__(self, parts: Sequence[tuple[Part, Reward]], key: str | None) -> None:
        self._parts = parts
        self._key = key

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order."""
        columns = await asyncio.gather(*(reward.score(samples) for _, reward in self._parts))
        return [self._add(scores) for scores in zip(*columns, strict=True)]

    async def close(self) -> None:
        """Close every part."""
        await asyncio.gather(*(reward.close() for _, reward in self._parts))

    def _add(self, scores: Sequence[Score]) -> Score:
        total, said = 0.0, []
        for (part, _), score in zip(self._parts, scores, strict=True):
            if not isinstance(score, Scored):
                return score
            value = score.value.get(self._key or "") if isinstance(score.value, Mapping) else score.value
            if not isinstance(value, int | float):
                return Invalid(f"{part.name} answers with a dict, in which --reward-key names no number")
            total += part.weight * value
            said.append(f"{part.name} {value:g}")
        return Scored(total, ", ".join(said))


def create(config: Config) -> SumReward:
    """The reward, with its parts."""
    chosen = config.get(PluginOptions)
    host = PluginHost(block=chosen.block_plugins, allow=chosen.allow_plugins)
    parts = parse_parts(config.get(SumOptions).sum_of)
    made = [(part, make(host.load("reward", part.name).ref, config)) for part in parts]
    return SumReward(made, config.get(RewardOptions).reward_key)
