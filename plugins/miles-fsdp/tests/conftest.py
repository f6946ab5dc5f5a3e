from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist


def _helpers() -> ModuleType:
    name = "miles_fsdp_test_helpers"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("helpers.py"))
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The functions of ``helpers.py``."""
    return _helpers()


@pytest.fixture(scope="session")
def checkpoints(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of HF directories: qwen3, llama, half and moe."""
    root = tmp_path_factory.mktemp("checkpoints")
    tiny.write_checkpoints(root)
    return root


@pytest.fixture(scope="module")
def one_gpu_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, for a GPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    place = tmp_path_factory.mktemp("group") / "init"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("group") / "init"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)
