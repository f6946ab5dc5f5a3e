"""Which devices each process of a run gets, so that a part of an engine is on one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from miles_core.errors import RunError


@dataclass(frozen=True)
class Place:
    """A device of the run: the bundle that reserves it, its node, and its number there (None for a CPU)."""

    bundle: int
    node: str
    device: int | None = None


@dataclass(frozen=True)
class Seats:
    """Places by process.

    Attributes:
        ranks: one per rank of actor and critic.
        engines: per engine and part of it (one for each node that it is on), the part's places.
    """

    ranks: tuple[Place, ...]
    engines: tuple[tuple[tuple[Place, ...], ...], ...]


def seat(places: Sequence[Place], engines: int, parts: int, size: int, *, shared: bool) -> Seats:
    """Seat a run.

    Args:
        places: every device of the run, ordered by node and number.
        engines, parts, size: engines, parts of each, and devices of a part.
        shared: engines take the devices of the trainers, the first engine those of the first ranks.

    Raises:
        RunError: M535, a part would have devices of several nodes.
    """
    if shared:
        blocks = [tuple(places[first : first + size]) for first in range(0, engines * parts * size, size)]
        for number, block in enumerate(blocks):
            if len({place.node for place in block}) > 1:
                raise _apart(number // parts, size, "its devices are those of neighbouring trainers, which are on several nodes")
        ranks = tuple(places)
    else:
        # From the end, so that trainers are first, and parts find whole nodes before single ranks break them up.
        left, blocks = list(places), []
        for number in reversed(range(engines * parts)):
            node = next((p.node for p in reversed(left) if sum(q.node == p.node for q in left) >= size), None)
            if node is None:
                raise _apart(number // parts, size, "no node has so many of those that are reserved")
            blocks.insert(0, tuple([place for place in left if place.node == node][-size:]))
            left = [place for place in left if place not in blocks[0]]
        ranks = tuple(left)
    return Seats(ranks, tuple(tuple(blocks[first : first + parts]) for first in range(0, engines * parts, parts)))


def _apart(engine: int, size: int, why: str) -> RunError:
    what = f"engine-{engine} does not get {size} devices of one node"
    fix = "see that --num-gpus-per-node is what the nodes have, and that whole nodes are free"
    return RunError("M535", what, owner="miles-core", why=why, fix=fix)
