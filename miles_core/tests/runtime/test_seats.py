"""Who gets which device."""

from __future__ import annotations

import pytest

from miles_core.errors import RunError
from miles_core.runtime.seats import Place, seat


def nodes(*sizes: int) -> list[Place]:
    """Devices of nodes a, b, ... in order."""
    places = [(node, device) for node, size in zip("abcd", sizes, strict=False) for device in range(size)]
    return [Place(bundle, node, device) for bundle, (node, device) in enumerate(places)]


def test_one_node_has_trainers_first_and_engines_in_order() -> None:
    seats = seat(nodes(6), engines=2, parts=1, size=2, shared=False)
    assert [place.bundle for place in seats.ranks] == [0, 1]
    assert [[[place.bundle for place in part] for part in parts] for parts in seats.engines] == [[[2, 3]], [[4, 5]]]


def test_parts_of_an_engine_get_whole_nodes_and_trainers_what_is_left() -> None:
    # The trainer's node comes last here; an engine cut by number would have one device of it, and seven of another node.
    seats = seat(nodes(8, 8, 1), engines=1, parts=2, size=8, shared=False)
    assert [[place.node for place in part] for part in seats.engines[0]] == [["a"] * 8, ["b"] * 8]
    assert [place.node for place in seats.ranks] == ["c"]
    assert [place.device for place in seats.engines[0][1]] == list(range(8))


def test_shared_devices_are_those_of_the_trainers_in_order() -> None:
    seats = seat(nodes(4, 4), engines=1, parts=2, size=4, shared=True)
    assert [place.bundle for place in seats.ranks] == list(range(8))
    assert [[place.bundle for place in part] for part in seats.engines[0]] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(("sizes", "shared"), [((3, 5), True), ((7, 7, 2), False)])
def test_a_part_is_not_torn_between_nodes(sizes: tuple[int, ...], shared: bool) -> None:
    with pytest.raises(RunError, match=r"M535.*engine-\d does not get \d devices of one node"):
        seat(nodes(*sizes), engines=1, parts=2, size=4 if shared else 8, shared=shared)


def test_no_engines() -> None:
    assert seat(nodes(2), engines=0, parts=1, size=1, shared=False).engines == ()
