"""What two data-parallel ranks compute together, against what one computes alone."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_ranks.py")
WORLD, SECONDS = 2, 120

spec = importlib.util.spec_from_file_location("training_two_ranks", SCRIPT)
two_ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(two_ranks)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def together(kit, tmp_path_factory):
    """What rank 0 found, and some of what every rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(kit.checkpoint, folder / "toy")
    logs = [folder / f"rank-{rank}.log" for rank in range(WORLD)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            command = [sys.executable, str(SCRIPT), str(rank), str(WORLD), str(folder)]
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * WORLD, "\n".join(log.read_text()[-3000:] for log in logs)
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.mark.parametrize("name", two_ranks.CASES)
def test_two_ranks_do_what_one_does(kit, together, furthest, name):
    found, wanted = together["results"][name], two_ranks.run(kit, name, 0, 1)
    if "two steps" not in name:
        # A second step starts at weights that differ by rounding.
        assert furthest(found["gradients"], wanted["gradients"]) < 1e-5 if wanted["gradients"] else not found["gradients"]
    assert furthest(found["weights"], wanted["weights"]) < 1e-5
    assert len(found["metrics"]) == len(wanted["metrics"])
    for ours, theirs in zip(found["metrics"], wanted["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert found["rollout"] == pytest.approx(wanted["rollout"], rel=1e-4, abs=1e-5)
    assert (found["skipped"], found["tokens"]) == (wanted["skipped"], wanted["tokens"])


def test_ranks_agree_on_metrics_and_on_the_number_of_micro_batches(together):
    first, second = together["ranks"]
    assert first == second
    assert first["one row"]["micro_batches"] == 1
    assert first["unequal tokens"]["micro_batches"] > 2


def test_a_rollout_without_information_is_left_out_on_both(together):
    assert together["results"]["no information"]["skipped"]
    assert not together["results"]["one rank without information"]["skipped"]


@pytest.mark.parametrize("name", two_ranks.CRITICS)
def test_a_critic_of_two_ranks_is_that_of_one(kit, furthest, name, together):
    found, wanted = together["critics"][name], two_ranks.run_critic(kit, name, 0, 1)
    assert furthest(found["gradients"], wanted["gradients"]) < 1e-5
    assert furthest(found["weights"], wanted["weights"]) < 1e-5
    assert found["tokens"] == wanted["tokens"]
    for mine, theirs in zip(found["metrics"], wanted["metrics"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
