"""What a machine has, by the files of drivers."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_core.accelerator.numa import cpus_of_node, node_of_pci
from miles_core.accelerator.vendors import CUDA, HIP, usable_gpus, vendor, visible_gpus, visible_ids


def amd(root: Path, ids: list[str]) -> Path:
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev/kfd").touch()
    for number, text in enumerate(ids):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "gpu_id").write_text(f"{text}\n")
    return root


def nvidia(root: Path, count: int) -> Path:
    (root / "dev").mkdir(exist_ok=True)
    for number in range(count):
        (root / f"dev/nvidia{number}").touch()
    (root / "dev/nvidiactl").touch()
    return root


def test_a_machine_with_nvidia_gpus(tmp_path: Path) -> None:
    root = nvidia(tmp_path, 4)
    assert vendor(root) is CUDA
    assert usable_gpus({}, root) == 4
    assert usable_gpus({"CUDA_VISIBLE_DEVICES": "1,3"}, root) == 2
    assert usable_gpus({"HIP_VISIBLE_DEVICES": ""}, root) == 4


def test_a_machine_with_amd_gpus(tmp_path: Path) -> None:
    root = amd(tmp_path, ["0", "41932", "8121", "0"])
    assert vendor(root) is HIP
    assert usable_gpus({}, root) == 2, "a processor is a node of the topology with the id 0"
    assert usable_gpus({"HIP_VISIBLE_DEVICES": "1"}, root) == 1
    assert usable_gpus({"CUDA_VISIBLE_DEVICES": ""}, root) == 0, "HIP obeys CUDA's variable, too"
    assert usable_gpus({"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "0,1"}, root) == 2
    (root / "dev/kfd").unlink()
    assert usable_gpus({}, root) == 0


def test_a_machine_without_gpus(tmp_path: Path) -> None:
    assert vendor(tmp_path) is CUDA
    assert usable_gpus({}, tmp_path) == 0


def test_hiding_devices() -> None:
    assert CUDA.hidden() == {"CUDA_VISIBLE_DEVICES": ""}
    assert HIP.hidden() == {"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": ""}


def test_numbers_of_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_ids({"CUDA_VISIBLE_DEVICES": "2, 5"}) == (2, 5)
    assert visible_ids({"CUDA_VISIBLE_DEVICES": ""}) == visible_ids({}) == ()


def test_the_cpus_beside_a_device(tmp_path: Path) -> None:
    slot = tmp_path / "bus/pci/devices/0000:1b:00.0"
    slot.mkdir(parents=True)
    (slot / "numa_node").write_text("1\n")
    node = tmp_path / "devices/system/node/node1"
    node.mkdir(parents=True)
    (node / "cpulist").write_text("4-6,12\n")
    assert node_of_pci(0, 0x1B, 0, tmp_path) == 1
    assert cpus_of_node(1, tmp_path) == {4, 5, 6, 12}
    (slot / "numa_node").write_text("-1\n")
    assert node_of_pci(0, 0x1B, 0, tmp_path) is None
    assert node_of_pci(0, 0x1C, 0, tmp_path) is None
    assert cpus_of_node(7, tmp_path) == frozenset()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, 4), ("", 0), ("-1", 0), ("0", 1), ("0,1", 2), ("0,-1,2", 1), ("GPU-abc", 1)],
)
def test_visible_gpus(visible: str | None, expected: int) -> None:
    assert visible_gpus(4, visible) == expected


def test_a_container_that_shows_some_of_the_hosts_gpus(tmp_path: Path) -> None:
    root = nvidia(tmp_path, 2)
    for name in ("0000:01", "0000:02", "0000:03"):
        (root / "proc/driver/nvidia/gpus" / name).mkdir(parents=True)
    assert usable_gpus({}, root) == 2
    for number in range(2):
        (root / f"dev/nvidia{number}").unlink()
    assert usable_gpus({}, root) == 3
