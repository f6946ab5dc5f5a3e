"""Kill -9 of any process of a run at any moment, again and again: resumed each time, it ends as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(task, cluster, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "kill_resume.py")]
    limits = ["--kills", "50", "--minutes", "0.4", "--rollouts", "8"]
    places = ["--task", str(task.folder), "--ray-address", cluster, "--out", str(tmp_path)]
    done = subprocess.run([*script, *limits, *places], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "kill_resume.json").read_text(encoding="utf-8"))["figures"]
    assert found["kills"] >= 1
    assert found["curves equal"]
    assert found["weights equal"]
    assert found["rollouts of each"] == 8
