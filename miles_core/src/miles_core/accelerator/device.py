"""The one place that asks PyTorch about devices: core and the backends ask an :class:`Accelerator`.

Exceptions, which are CUDA by nature: CUDA IPC handles (``weights/transports/cuda_ipc.py``) and CUDA graphs (of the transformers
engine).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from miles_core.accelerator.numa import cpus_of_node, node_of_pci, pin
from miles_core.accelerator.vendors import CUDA, HIP, Vendor


@dataclass(frozen=True)
class Memory:
    """Bytes of one device: free and in all, as the driver says; held and at most held by tensors of this process."""

    free: int
    total: int
    allocated: int
    peak: int


class Accelerator:
    """The processor, and what every accelerator can be asked.

    Attributes:
        name: ``cpu``, ``cuda`` or ``hip``.
        type: of its ``torch.device``: ``cpu`` or ``cuda``.
        collectives: what a process group of its tensors is called in PyTorch.
        library: what does the work there.
    """

    name = "cpu"
    type = "cpu"
    collectives = "gloo"
    library = "gloo"

    def count(self) -> int:
        """Devices that this process sees."""
        return 1

    def device(self, index: int | None = None) -> torch.device:
        """One of them; the current one by default."""
        return torch.device("cpu")

    def use(self, device: torch.device) -> None:
        """Make a device the calling thread's current one."""

    def groups(self, collectives: str) -> str:
        """What to give ``init_process_group`` for collectives of host and device tensors.

        Args:
            collectives: what is asked for, ``gloo`` or ``nccl``.
        """
        return "gloo"

    def finish(self, device: torch.device | str | None = None) -> None:
        """Wait for everything queued on the current stream of ``device``."""

    def synchronise(self) -> None:
        """Wait for everything queued on every stream of the current device."""

    def release_cache(self) -> None:
        """Give memory that no tensor holds back to the driver."""

    def memory(self, device: torch.device | str | None = None) -> Memory:
        """Memory of a device; of the processor, that of the machine and of this process."""
        import psutil

        machine, process = psutil.virtual_memory(), psutil.Process().memory_info()
        return Memory(machine.available, machine.total, process.rss, getattr(process, "peak_wset", process.rss))

    def random_state(self) -> torch.Tensor | None:
        """State of the current device's generator; None where the host's is all there is."""
        return None

    def set_random_state(self, state: torch.Tensor) -> None:
        """Undo :meth:`random_state`."""

    def local_index(self, number: int) -> int:
        """The index in this process of the machine's device ``number``, by the variable that hides the others."""
        return 0

    def pin_to_node(self, device: torch.device) -> tuple[int, ...]:
        """Keep this process on the CPUs next to a device; gives them, none when nothing is known and nothing was done."""
        return ()

    def record_memory(self, most: int, out_of_memory: Callable[[], None]) -> bool:
        """Record allocations, the last ``most`` of them; call back when memory runs out. False where there is no recorder."""
        return False

    def write_memory(self, path: Path) -> None:
        """Write what :meth:`record_memory` recorded, in PyTorch's own format (for https://pytorch.org/memory_viz)."""

    def stop_recording_memory(self) -> None:
        """Record no more."""

    def activities(self) -> list[Any]:
        """What PyTorch's profiler is to look at."""
        return [torch.profiler.ProfilerActivity.CPU]

    def nvidia_generation(self, device: torch.device | str | None = None) -> int:
        """The major compute capability of an NVIDIA device (9 is Hopper); 0 of anything else."""
        return 0


class CudaAccelerator(Accelerator):
    """NVIDIA's."""

    name = "cuda"
    type = "cuda"
    collectives = "nccl"
    vendor: Vendor = CUDA

    @property
    def library(self) -> str:  # type: ignore[override]
        """``nccl``, or ``rccl``."""
        return self.vendor.collectives

    def count(self) -> int:
        """Devices that this process sees."""
        return torch.cuda.device_count()

    def device(self, index: int | None = None) -> torch.device:
        """One of them; the current one by default."""
        return torch.device("cuda", torch.cuda.current_device() if index is None else index)

    def use(self, device: torch.device) -> None:
        """Make a device the calling thread's current one."""
        torch.cuda.set_device(device)

    def groups(self, collectives: str) -> str:
        """NCCL for device tensors beside gloo for host tensors, or gloo for all."""
        return "gloo" if collectives == "gloo" else "cpu:gloo,cuda:nccl"

    def finish(self, device: torch.device | str | None = None) -> None:
        """Wait for everything queued on the current stream of ``device``."""
        torch.cuda.current_stream(device).synchronize()

    def synchronise(self) -> None:
        """Wait for everything queued on every stream of the current device."""
        torch.cuda.synchronize()

    def release_cache(self) -> None:
        """Give memory that no tensor holds back to the driver."""
        torch.cuda.empty_cache()

    def memory(self, device: torch.device | str | None = None) -> Memory:
        """Memory of a device."""
        free, total = torch.cuda.mem_get_info(device)
        return Memory(free, total, torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))

    def random_state(self) -> torch.Tensor | None:
        """State of the current device's generator."""
        return torch.cuda.get_rng_state()

    def set_random_state(self, state: torch.Tensor) -> None:
        """Undo :meth:`random_state`."""
        torch.cuda.set_rng_state(state)

    def local_index(self, number: int) -> int:
        """The index in this process of the machine's device ``number``, by the variable that hides the others."""
        visible = [part.strip() for part in (self.vendor.shown() or "").split(",") if part.strip()]
        if str(number) in visible:
            return visible.index(str(number))
        return 0 if visible else number

    def pin_to_node(self, device: torch.device) -> tuple[int, ...]:
        """Keep this process on the CPUs of the NUMA node that the device's slot belongs to."""
        properties = torch.cuda.get_device_properties(device)
        domain, bus, slot = (getattr(properties, f"pci_{part}_id", -1) for part in ("domain", "bus", "device"))
        node = node_of_pci(int(domain), int(bus), int(slot)) if slot >= 0 else None
        return () if node is None else pin(cpus_of_node(node))

    def record_memory(self, most: int, out_of_memory: Callable[[], None]) -> bool:
        """Record allocations with the stacks that made them."""
        torch.cuda.memory._record_memory_history(max_entries=most, stacks="all")
        torch._C._cuda_attach_out_of_memory_observer(lambda *_: out_of_memory())  # type: ignore[attr-defined]
        return True

    def write_memory(self, path: Path) -> None:
        """Write what was recorded."""
        torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]

    def stop_recording_memory(self) -> None:
        """Record no more."""
        torch.cuda.memory._record_memory_history(enabled=None)

    def activities(self) -> list[Any]:
        """Host and device."""
        return [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]

    def nvidia_generation(self, device: torch.device | str | None = None) -> int:
        """The major compute capability."""
        return torch.cuda.get_device_capability(device)[0]


class HipAccelerator(CudaAccelerator):
    """AMD's, by PyTorch's HIP build, in which ``torch.cuda`` is HIP and ``nccl`` is RCCL."""

    name = "hip"
    vendor = HIP

    def nvidia_generation(self, device: torch.device | str | None = None) -> int:
        """None: the numbers of AMD's architectures mean others."""
        return 0


CPU = Accelerator()


@functools.cache
def accelerator() -> Accelerator:
    """What this process computes on by default: the accelerators that PyTorch sees, else the processor."""
    return _kind() if torch.cuda.is_available() else CPU


def accelerator_of(device: torch.device | str) -> Accelerator:
    """What a device belongs to."""
    return _kind() if torch.device(device).type == "cuda" else CPU


def rank_device(rank: int, wanted: str = "auto", collectives: str = "") -> torch.device:
    """The device of a training rank: its turn among those that the process sees.

    Args:
        wanted: ``cpu``, ``cuda``, or ``auto``, which takes an accelerator where ``collectives`` can reach it.
        collectives: names of the default process group's backends.
    """
    here = accelerator()
    if wanted == "auto":
        wanted = here.type if here.collectives in collectives else "cpu"
    if wanted == "cpu":
        return CPU.device()
    return _kind().device(rank % _kind().count())


@functools.cache
def _kind() -> CudaAccelerator:
    return HipAccelerator() if torch.version.hip else CudaAccelerator()
