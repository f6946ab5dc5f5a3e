"""Profiles and memory records of one training rank, on the CPU."""

from __future__ import annotations

import gzip
import importlib
import json
import logging
from pathlib import Path

import pytest
import torch

from miles_core.config import DebugOptions
from miles_core.debug.memory import MemoryRecord
from miles_core.debug.profiler import Profiler
from miles_core.debug.watch import TrainingWatch
from miles_core.errors import RunError
from miles_core.options import Config

CPU = torch.device("cpu")


def work() -> None:
    torch.ones(8, 8) @ torch.ones(8, 8)


def operators(path: Path) -> list[str]:
    with gzip.open(path) as file:
        return [str(event.get("name")) for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]


def train(profiler: Profiler, rollouts: int) -> None:
    for rollout_id in range(rollouts):
        profiler.started(rollout_id)
        for phase in ("ref_log_probs", "log_probs", "advantages", "actor_train", "actor_train"):
            with profiler.span(phase):
                work()
        profiler.ended()
    profiler.close()


@pytest.mark.parametrize(("start", "end", "last"), [(2, 4, 3), (0, 1, 0), (1, 9, 4)])
def test_one_trace_of_a_range_of_rollouts(tmp_path: Path, start: int, end: int, last: int) -> None:
    options = DebugOptions(use_pytorch_profiler=True, profile_step_start=start, profile_step_end=end)
    train(Profiler(options, tmp_path, 3, CPU), 5)
    found = list(tmp_path.iterdir())
    assert [path.name for path in found] == [f"train_overall_rollout{last}_rank3.json.gz"]
    products = sum(name == "aten::matmul" for name in operators(found[0]))
    assert products == 5 * (min(end, 5) - start)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("train_actor", ["actor_train_rollout1_0", "actor_train_rollout1_1"]),
        ("train_log_probs", ["log_probs_rollout1_1", "ref_log_probs_rollout1_0"]),
    ],
)
def test_a_trace_of_each_span(tmp_path: Path, target: str, names: list[str]) -> None:
    options = DebugOptions(
        use_pytorch_profiler=True,
        profile_target=[target],
        profile_step_start=1,
        profile_step_end=2,
        profile_dir=str(tmp_path / "x"),
    )
    train(Profiler(options, tmp_path, 0, CPU), 3)
    found = sorted((tmp_path / "x").iterdir())
    assert [path.name for path in found] == [f"{target}_{name}_rank0.json.gz" for name in names]
    assert all(operators(path).count("aten::matmul") == 1 for path in found)


def test_torch_records_no_host_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = DebugOptions(record_memory_history=True, memory_snapshot_dir=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        record = MemoryRecord(options, 0, CPU)
    record.ended()
    record.close()
    assert "--memory-recorder torch records device memory" in caplog.text
    assert not record.recording
    assert not list(tmp_path.iterdir())


def test_memray_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def import_module(name: str, package: str | None = None):
        if name == "memray":
            raise ModuleNotFoundError("No module named 'memray'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(RunError, match="pip install memray") as caught:
        MemoryRecord(DebugOptions(memory_recorder="memray", memory_snapshot_dir=str(tmp_path)), 0, CPU)
    assert caught.value.code == "M374"


@pytest.mark.parametrize("rollouts", [1, None])
def test_memray_writes_what_it_can_open(tmp_path: Path, rollouts: int | None) -> None:
    memray = pytest.importorskip("memray")
    options = DebugOptions(
        memory_recorder="memray",
        memory_snapshot_dir=str(tmp_path / "new"),
        memory_snapshot_num_steps=rollouts,
        memory_snapshot_path="m.bin",
    )
    record = MemoryRecord(options, 2, CPU)
    kept = bytearray(1 << 20)
    record.ended()
    assert record.recording == (rollouts is None)
    record.close()
    assert len(kept) == 1 << 20
    (path,) = (tmp_path / "new").iterdir()
    assert path.name.endswith("_rank2_m.bin")
    assert sum(each.size for each in memray.FileReader(str(path)).get_high_watermark_allocation_records()) >= 1 << 20


def test_nothing_is_recorded_unless_asked_for(tmp_path: Path) -> None:
    config = Config.of(DebugOptions())
    watch = TrainingWatch(config, tmp_path, 0, CPU)
    watch.started(0)
    with watch.span("actor_train"):
        work()
    watch.ended()
    watch.close()
    assert not watch.wants_log_probs
    assert not list(tmp_path.iterdir())
    assert not {"--profile-dir", "--profile-target", "--memory-snapshot-dir", "--memory-recorder"} & config.reads()
