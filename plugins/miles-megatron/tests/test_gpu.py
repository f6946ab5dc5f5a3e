"""The same equalities on GPUs in bf16: one for every rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
SPLITS = {1: {"one GPU", "one GPU compiled", "one GPU recomputing"}, 2: {"DP2", "TP2", "TP2 SP", "PP2", "CP2"}}
SECONDS = 300


@pytest.mark.parametrize("world", [1, 2])
def test_log_probs_and_gradients_are_those_of_the_fsdp_backend(world, root, tmp_path):
    if torch.cuda.device_count() < world:
        pytest.skip(f"needs {world} GPUs")
    script = Path(__file__).with_name("gpu_ranks.py")
    logs = [tmp_path / f"rank-{rank}.log" for rank in range(world)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            command = [sys.executable, str(script), str(rank), str(world), str(root), str(tmp_path)]
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for log in logs)
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    assert set(found) == SPLITS[world]
    for name, (log_probs, norm) in found.items():
        assert log_probs < 0.05, name
        assert norm < 0.05, name
