"""A reward: grades samples, and says so when it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from miles_core.samples import Sample, Score


class Reward(Protocol):
    """Made by ``create(config)`` in the rollout manager. Must not block the event loop."""

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order. With ``--group-rm`` the samples are one whole group.

        An exception raised here counts as ``Invalid`` for every sample given.
        """
        ...

    async def close(self) -> None:
        """End worker processes and connections."""
        ...
