"""Engines of a run that are killed or hang while they generate: they come back, and the run loses nothing by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("loop", "kills", "stops"), [("one-step", 1, 1.0), ("colocated", 1, 0.0)])
def test_engines_come_back_and_nothing_is_lost(loop: str, kills: int, stops: float, task, cluster, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "engine_kills.py")]
    limits = ["--loop", loop, "--kills", str(kills), "--minutes", "1", "--stops", str(stops), "--pause", "1"]
    places = ["--task", str(task.folder), "--ray-address", cluster, "--out", str(tmp_path)]
    done = subprocess.run([*script, *limits, *places], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / f"engine_kills_{loop}.json").read_text(encoding="utf-8"))["figures"]
    assert found["killed"] + found["stopped"] >= 1
    assert found["engines that came back"] >= 1
    assert found["every sample there"]
    assert found["none twice"]
    assert found["every token of the version that was served"]
    assert found["log-probs are the trainer's"]
    said = (tmp_path / "run" / "output.txt").read_text(encoding="utf-8")
    assert not stops or "gave no sign of life for 10 s" in said
    restarts = [
        json.loads(line).get("perf/engine_restarts", 0) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert sum(restarts) >= 1
