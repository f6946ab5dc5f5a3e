"""CPUs that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from miles_core.runtime.processors import usable_cpus


@pytest.mark.parametrize(
    ("text", "most"), [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1), ("nonsense", None), ("1 0", None)]
)
def test_a_containers_share(tmp_path: Path, text: str, most: int | None) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text + "\n", encoding="ascii")
    assert usable_cpus(quota) == (most or usable_cpus(tmp_path / "none"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to CPUs")
def test_a_process_that_is_bound_to_one_cpu(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus(tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, before)
