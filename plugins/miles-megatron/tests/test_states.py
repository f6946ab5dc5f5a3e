"""Training states, taken up by two processes on the same and on other parallel sizes."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


def test_a_state_is_taken_up_on_any_parallel_sizes(results):
    for rank in results:
        found = dict(rank["states"])
        assert found.pop("refused") == ["M344", "M344"]
        for name, (equal, off, moved) in found.items():
            assert equal, name
            assert moved > 1e-3, name
            before, after = name.split(" to ")
            # The same sizes give the same bits.
            assert off <= (0 if before == after else 1e-5), name
