"""The accelerator of a machine that has one."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest
import torch

from miles_core.accelerator.device import accelerator, accelerator_of, rank_device
from miles_core.config import DebugOptions
from miles_core.debug.memory import MemoryRecord
from miles_core.debug.profiler import Profiler

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no accelerator")]


def test_what_it_says_of_itself() -> None:
    gpu = accelerator()
    assert gpu is accelerator_of("cuda")
    assert (gpu.type, gpu.collectives) == ("cuda", "nccl")
    assert gpu.name == ("hip" if torch.version.hip else "cuda")
    gpu.use(gpu.device(0))
    assert gpu.device() == rank_device(gpu.count(), "auto", "cpu:gloo,cuda:nccl") == torch.device("cuda", 0)
    assert {activity.name for activity in gpu.activities()} == {"CPU", "CUDA"}
    assert isinstance(gpu.pin_to_node(gpu.device()), tuple)


def test_memory_and_its_cache() -> None:
    gpu = accelerator()
    # The first use of a kernel loads it, which takes memory for good.
    torch.ones(8, dtype=torch.uint8, device=gpu.device())
    gpu.synchronise()
    gpu.release_cache()
    before = gpu.memory()
    kept = torch.ones(64 << 20, dtype=torch.uint8, device=gpu.device())
    gpu.finish()
    gpu.synchronise()
    held = gpu.memory()
    assert held.allocated - before.allocated == kept.numel()
    assert held.peak >= held.allocated
    assert before.free - held.free >= kept.numel()
    del kept
    assert gpu.memory().free < before.free, "the cache keeps it"
    gpu.release_cache()
    assert gpu.memory().free >= before.free - (8 << 20)


def test_random_state() -> None:
    gpu = accelerator()
    state = gpu.random_state()
    assert state is not None
    first = torch.rand(4, device=gpu.device())
    gpu.set_random_state(state)
    assert torch.equal(torch.rand(4, device=gpu.device()), first)


def test_a_record_of_allocations(tmp_path: Path) -> None:
    record = MemoryRecord(DebugOptions(record_memory_history=True, memory_snapshot_dir=str(tmp_path)), 0, accelerator().device())
    kept = torch.ones(3 << 20, dtype=torch.uint8, device=accelerator().device())
    assert record.recording
    record.close()
    (path,) = tmp_path.iterdir()
    snapshot = pickle.loads(path.read_bytes())
    sizes = [event["size"] for trace in snapshot["device_traces"] for event in trace if event["action"] == "alloc"]
    assert kept.numel() in sizes
    assert not record.recording


def test_a_record_when_memory_runs_out(tmp_path: Path) -> None:
    record = MemoryRecord(DebugOptions(record_memory_history=True, memory_snapshot_dir=str(tmp_path)), 0, accelerator().device())
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 50, dtype=torch.uint8, device=accelerator().device())
    assert list(tmp_path.iterdir())
    record.close()


def test_a_profile_has_kernels(tmp_path: Path) -> None:
    device = accelerator().device()
    options = DebugOptions(use_pytorch_profiler=True, profile_target=["train_actor"], profile_step_start=0, profile_step_end=1)
    profiler = Profiler(options, tmp_path, 0, device)
    profiler.started(0)
    with profiler.span("actor_train"):
        torch.ones(256, 256, device=device) @ torch.ones(256, 256, device=device)
        accelerator().synchronise()
    profiler.ended()
    (path,) = tmp_path.iterdir()
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
