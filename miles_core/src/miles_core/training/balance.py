"""Even partitions: the largest differencing method.

Source: Karmarkar and Karp 1982, "The differencing method of set partitioning", in its k-way form. Each partial solution is k sets;
the two with the largest spread are merged, the heaviest set of one with the lightest of the other, until one is left.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TypeAlias

_Set: TypeAlias = tuple[int, int, list[tuple[int, int]]]
"""Total, number of items, and the items as ``(index, size)``."""


def balanced_partitions(sizes: Sequence[int], parts: int, *, equal_counts: bool) -> list[list[int]]:
    """Divide items so that the sums of their sizes are about equal.

    Args:
        sizes: of the items, such as tokens.
        parts: number of partitions.
        equal_counts: every partition gets the same number of items.

    Returns:
        Positions of the items of each partition, ascending. No partition is empty.

    Raises:
        ValueError: there are fewer items than parts, or they do not divide.
    """
    if parts < 1 or len(sizes) < parts:
        raise ValueError(f"{len(sizes)} items make no {parts} partitions")
    if equal_counts and len(sizes) % parts:
        raise ValueError(f"{len(sizes)} items do not divide into {parts} equal partitions")
    if parts == 1:
        return [list(range(len(sizes)))]
    items = sorted((int(size), index) for index, size in enumerate(sizes))
    per_state = parts if equal_counts else 1
    heap = []
    for start in range(0, len(items), per_state):
        sets: list[_Set] = [(size, 1, [(index, size)]) for size, index in items[start : start + per_state]]
        heap.append(_State(sets[::-1], parts))
    heapq.heapify(heap)
    while len(heap) > 1:
        first = heapq.heappop(heap)
        heapq.heapreplace(heap, first.merged(heap[0]))
    found = [sorted(index for index, _ in members) for _, _, members in heap[0].sets]
    return _without_empty(found + [[] for _ in range(parts - len(found))])


class _State:
    """A partial solution: its sets that are not empty, heaviest first.

    The state with the largest spread, then the one with the heaviest set, comes first.
    """

    __slots__ = ("parts", "sets", "spread")

    def __init__(self, sets: list[_Set], parts: int) -> None:
        self.sets = sets
        self.parts = parts
        self.spread = sets[0][0] - (sets[-1][0] if len(sets) == parts else 0)

    def __lt__(self, other: _State) -> bool:
        if self.spread != other.spread:
            return self.spread > other.spread
        return self.sets[0] > other.sets[0]

    def merged(self, other: _State) -> _State:
        # Set i meets set parts - 1 - i of the other: the first ones meet empty sets, and so do the other's first ones.
        ours, theirs = self.sets, other.sets
        pairs = max(len(ours) + len(theirs) - self.parts, 0)
        free, met = len(ours) - pairs, len(theirs) - pairs
        joined = [(a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a, b in zip(ours[free:], reversed(theirs[met:]), strict=True)]
        sets = ours[:free] + theirs[:met] + joined
        sets.sort(reverse=True)
        return _State(sets, self.parts)


def _without_empty(partitions: list[list[int]]) -> list[list[int]]:
    """Items of size 0 may leave a partition empty: the fullest gives one away."""
    for partition in partitions:
        if not partition:
            partition.append(max(partitions, key=len).pop())
    return partitions
