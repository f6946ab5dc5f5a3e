"""The processor's accelerator, and what AMD's differs in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from miles_core.accelerator import device as seam
from miles_core.accelerator.device import CPU, CudaAccelerator, HipAccelerator, accelerator_of, rank_device

ROOT = Path(__file__).parents[3]
SOURCES = [
    ROOT / "miles_core/src/miles_core",
    ROOT / "plugins/miles-fsdp/src/miles_fsdp",
    ROOT / "plugins/miles-transformers/src/miles_transformers",
]
EXCEPTIONS = {
    "accelerator/device.py": "the seam",
    "weights/transports/cuda_ipc.py": "CUDA IPC handles",
    "graphs.py": "CUDA graphs",
}


def test_nobody_else_asks_torch_about_devices() -> None:
    found = {
        str(file.relative_to(folder))
        for folder in SOURCES
        for file in folder.rglob("*.py")
        if "torch.cuda" in file.read_text("utf-8")
    }
    assert found == EXCEPTIONS.keys()


def test_the_processor() -> None:
    assert accelerator_of("cpu") is CPU
    assert (CPU.device(), CPU.count(), CPU.collectives, CPU.groups("gloo")) == (torch.device("cpu"), 1, "gloo", "gloo")
    CPU.use(CPU.device())
    CPU.finish("cpu")
    CPU.synchronise()
    CPU.release_cache()
    assert CPU.random_state() is None
    memory = CPU.memory()
    assert 0 < memory.free <= memory.total
    assert 0 < memory.allocated <= memory.peak <= memory.total
    assert CPU.pin_to_node(CPU.device()) == ()
    assert not CPU.record_memory(10, pytest.fail)
    assert [activity.name for activity in CPU.activities()] == ["CPU"]


def test_a_rank_takes_an_accelerator_only_where_collectives_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_device(3, "cpu", "cpu:gloo,cuda:nccl") == torch.device("cpu")
    gpu = CudaAccelerator()
    monkeypatch.setattr(seam, "accelerator", lambda: gpu)
    monkeypatch.setattr(seam, "_kind", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert rank_device(3, "auto", "cpu:gloo,cuda:nccl") == torch.device("cuda", 1)
    assert rank_device(3, "auto", "gloo") == torch.device("cpu")
    assert rank_device(2, "cuda") == torch.device("cuda", 0)


def test_names_of_hip(monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCm's PyTorch is told from CUDA's by its version, and goes by CUDA's names but for the variables and RCCL."""
    monkeypatch.setattr(torch.version, "hip", "6.4.0")
    monkeypatch.setattr(seam, "_kind", seam._kind.__wrapped__)
    found = accelerator_of("cuda:1")
    assert isinstance(found, HipAccelerator)
    assert (found.name, found.type, found.collectives, found.library) == ("hip", "cuda", "nccl", "rccl")
    assert found.groups("nccl") == "cpu:gloo,cuda:nccl"
    assert (CudaAccelerator().library, CudaAccelerator().groups("gloo")) == ("nccl", "gloo")
    assert found.nvidia_generation() == 0


@pytest.mark.parametrize(
    ("kind", "visible", "number", "index"),
    [
        (CudaAccelerator, {"CUDA_VISIBLE_DEVICES": "4,6"}, 6, 1),
        (CudaAccelerator, {"CUDA_VISIBLE_DEVICES": "4,6", "HIP_VISIBLE_DEVICES": "6,4"}, 6, 1),
        (HipAccelerator, {"CUDA_VISIBLE_DEVICES": "4,6", "HIP_VISIBLE_DEVICES": "6,4"}, 6, 0),
        (HipAccelerator, {"CUDA_VISIBLE_DEVICES": "4,6"}, 6, 1),
        (CudaAccelerator, {"CUDA_VISIBLE_DEVICES": "GPU-1f"}, 3, 0),
        (CudaAccelerator, {}, 3, 3),
    ],
)
def test_a_device_of_the_machine_in_this_process(monkeypatch, kind, visible: dict[str, str], number: int, index: int) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in visible.items():
        monkeypatch.setenv(name, value)
    assert kind().local_index(number) == index


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
def test_pinning_keeps_every_thread_on_usable_cpus() -> None:
    code = (
        "import os, threading; from miles_core.accelerator.numa import pin\n"
        "stop = threading.Event(); thread = threading.Thread(target=stop.wait); thread.start()\n"
        "first = min(os.sched_getaffinity(0))\n"
        "assert pin([10_000]) == (); assert pin([first, 10_000]) == (first,)\n"
        "print(os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id) == {first}); stop.set()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"
