"""Rewards relative to their group, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def by_group(
    rewards: Sequence[float], groups: Sequence[int], transform: Callable[[list[float]], list[float]] | None
) -> list[float]:
    """Each group's rewards through ``transform``, in the order given; as they are without one.

    Args:
        rewards: one per sample.
        groups: group number of each sample; a group's samples may lie anywhere.
        transform: of the rewards of one group, none of them infinite. It is not asked about groups of equal rewards, one included:
            they give exactly 0, which a mean that is off in its last bit would not.

    Raises:
        ValueError: lengths differ, or a reward is not a finite number (which would spoil its siblings').
    """
    if len(rewards) != len(groups):
        raise ValueError(f"{len(rewards)} rewards for {len(groups)} group numbers")
    if not all(map(math.isfinite, rewards)):
        raise ValueError("a reward is not a finite number")
    if transform is None:
        return [float(r) for r in rewards]
    members: dict[int, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    shaped = [0.0] * len(rewards)
    for positions in members.values():
        own = [float(rewards[p]) for p in positions]
        if min(own) == max(own):
            continue
        for position, value in zip(positions, transform(own), strict=True):
            shaped[position] = value
    return shaped


def centred(rewards: Sequence[float]) -> list[float]:
    """Deviations from the mean."""
    mean = math.fsum(rewards) / len(rewards)
    return [r - mean for r in rewards]
