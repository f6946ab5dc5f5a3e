"""What the makers of accelerators call things, and which of them this machine has; found without a GPU library.

AMD's HIP stands in for CUDA in PyTorch: devices are ``cuda:0`` and up there, too, and collectives go by the name ``nccl``, which is
RCCL. What differs is here: the variables that hide devices, the driver's files, and the library's own name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Vendor:
    """A maker of accelerators.

    Attributes:
        name: ``cuda`` or ``hip``.
        visible: variables that say which devices a process may see; the first that is set counts.
        collectives: the library behind PyTorch's ``nccl``.
    """

    name: str
    visible: tuple[str, ...]
    collectives: str

    def shown(self, environment: Mapping[str, str] | None = None) -> str | None:
        """What the environment says of visible devices; None when it says nothing."""
        environment = os.environ if environment is None else environment
        return next((environment[name] for name in self.visible if name in environment), None)

    def hidden(self) -> dict[str, str]:
        """Variables under which a process sees no device."""
        return dict.fromkeys(self.visible, "")


CUDA = Vendor("cuda", ("CUDA_VISIBLE_DEVICES",), "nccl")
HIP = Vendor("hip", ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"), "rccl")


def vendor(root: Path = Path("/")) -> Vendor:
    """The maker of this machine's accelerators; NVIDIA where there are none."""
    return HIP if not _nvidia(root) and _amd(root) else CUDA


def usable_gpus(environment: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """Accelerators of this machine that the environment shows."""
    present = _nvidia(root)
    if present:
        return visible_gpus(present, CUDA.shown(environment))
    return visible_gpus(_amd(root), HIP.shown(environment))


def visible_ids(environment: Mapping[str, str] | None = None) -> tuple[int, ...]:
    """Numbers of the accelerators that the environment names."""
    shown = vendor().shown(environment) or ""
    return tuple(int(part) for part in shown.split(",") if part.strip().isdigit())


def visible_gpus(present: int, visible: str | None) -> int:
    """How many of the ``present`` GPUs a list of visible ones leaves: ids count up to the first that is negative."""
    if visible is None:
        return present
    count = 0
    for part in (p.strip() for p in visible.split(",")):
        if not part or part.startswith("-"):
            break
        count += 1
    return min(present, count)


def _nvidia(root: Path) -> int:
    """NVIDIA GPUs by the driver's files. A container may show the host's in one place and its own in the other: the fewer count."""
    counts = []
    for folder, pattern in (("proc/driver/nvidia/gpus", r".*"), ("dev", r"nvidia\d+")):
        try:
            counts.append(sum(re.fullmatch(pattern, entry.name) is not None for entry in (root / folder).iterdir()))
        except OSError:
            continue
    return min((count for count in counts if count), default=0)


def _amd(root: Path) -> int:
    """AMD GPUs by the driver's topology, in which a processor has the id 0; without ``/dev/kfd`` none can be used."""
    if not (root / "dev/kfd").exists():
        return 0
    count = 0
    for file in (root / "sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id"):
        try:
            count += file.read_text(encoding="ascii").strip() not in ("", "0")
        except OSError:
            continue
    return count
