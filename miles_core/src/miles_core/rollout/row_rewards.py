"""Rewards that rows choose for themselves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from miles_core.config import PluginOptions
from miles_core.errors import MilesError
from miles_core.options import Config
from miles_core.plugins import create
from miles_core.plugins.host import PluginHost
from miles_core.protocols import Reward
from miles_core.samples import Invalid, Sample, Score, row_reward

KEY = "rm_type"


class RowRewards:
    """Grades each sample with the reward that its ``metadata["rm_type"]`` names, else with the run's (:class:`Reward`).

    A reward is loaded when a row first names it; its options have their defaults unless the run's own reward shares them. A name
    that is not installed, or that cannot be loaded, makes those samples ``Invalid``.

    Args:
        default: the run's reward.
        name: of the run's reward.
    """

    def __init__(self, default: Reward, name: str, config: Config) -> None:
        self._config = config
        self._name = name
        self._made: dict[str, Reward | MilesError] = {name: default}
        self._host: PluginHost | None = None

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order; samples of one reward go to it together."""
        places: dict[str, list[int]] = {}
        for place, sample in enumerate(samples):
            places.setdefault(row_reward(sample.metadata) or self._name, []).append(place)
        if len(places) == 1:
            return await self._score(next(iter(places)), samples)
        columns = await asyncio.gather(*(self._score(name, [samples[i] for i in found]) for name, found in places.items()))
        scores: dict[int, Score] = {}
        for found, column in zip(places.values(), columns, strict=True):
            # A reward that returns too few leaves gaps, which the caller reports like those of a single reward.
            scores |= dict(zip(found, column, strict=False))
        return [scores[place] for place in range(len(samples)) if place in scores]

    async def close(self) -> None:
        """Close every reward."""
        await asyncio.gather(*(reward.close() for reward in self._made.values() if not isinstance(reward, MilesError)))

    def unknown(self, metadata: Iterable[Mapping[str, Any]]) -> list[str]:
        """Lines about rows whose reward cannot be used, for people to see before anything is graded."""
        named = Counter(name for each in metadata if (name := row_reward(each)))
        found = [(name, rows, self._find(name)) for name, rows in named.items()]
        return [
            f"{rows} rows name the reward {name!r} and will count as not gradable: {reward}"
            for name, rows, reward in found
            if isinstance(reward, MilesError)
        ]

    async def _score(self, name: str, samples: Sequence[Sample]) -> list[Score]:
        reward = self._find(name)
        if isinstance(reward, MilesError):
            return [Invalid(f"the row's {KEY} {name!r} cannot be used: {reward}") for _ in samples]
        try:
            return await reward.score(samples)
        except MilesError:
            raise
        except Exception as error:
            # Only the samples of this reward have failed, not those that others grade.
            return [Invalid(f"{type(error).__name__}: {error}") for _ in samples]

    def _find(self, name: str) -> Reward | MilesError:
        if name not in self._made:
            if self._host is None:
                chosen = self._config.get(PluginOptions)
                self._host = PluginHost(block=chosen.block_plugins, allow=chosen.allow_plugins)
            try:
                self._made[name] = create(self._host.load("reward", name).ref, self._config)
            except MilesError as error:
                self._made[name] = error
        return self._made[name]
