from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_core.training.balance import balanced_partitions

SIZES = [100, 200, 300, 50, 400, 150, 250, 350]


@pytest.mark.parametrize(
    ("parts", "equal_counts", "wanted"),
    [
        (2, True, [[1, 2, 3, 7], [0, 4, 5, 6]]),
        (4, True, [[0, 7], [1, 6], [3, 4], [2, 5]]),
        (3, False, [[0, 2, 6], [3, 4, 5], [1, 7]]),
    ],
)
def test_known_partitions(parts, equal_counts, wanted):
    assert balanced_partitions(SIZES, parts, equal_counts=equal_counts) == wanted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 8), st.booleans())
def test_every_item_is_in_one_partition(sizes, parts, equal_counts):
    if len(sizes) < parts or (equal_counts and len(sizes) % parts):
        with pytest.raises(ValueError):
            balanced_partitions(sizes, parts, equal_counts=equal_counts)
        return
    found = balanced_partitions(sizes, parts, equal_counts=equal_counts)
    assert len(found) == parts
    assert all(partition == sorted(partition) and partition for partition in found)
    assert sorted(i for partition in found for i in partition) == list(range(len(sizes)))
    if equal_counts:
        assert {len(partition) for partition in found} == {len(sizes) // parts}
