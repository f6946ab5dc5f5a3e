"""Training states, taken up by two processes on the same and on other parallel sizes."""

from __future__ import annotations

from pathlib import Path

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


def test_a_held_state_that_is_written_after_a_step_is_the_saved_one_byte_for_byte(root: Path, results):
    assert results
    for number in range(6):
        saved, held = root / f"state-{number}", root / f"held-{number}"
        names = {path.relative_to(saved) for path in saved.rglob("*") if path.is_file()}
        assert {Path("random-0.pt"), Path("random-1.pt"), Path("master/part-00000.safetensors")} <= names
        assert names == {path.relative_to(held) for path in held.rglob("*") if path.is_file()}
        for name in names:
            assert (saved / name).read_bytes() == (held / name).read_bytes(), name
