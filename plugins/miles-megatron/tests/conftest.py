from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

WORLD = 2
SECONDS = 240


@pytest.fixture(scope="session")
def helpers() -> ModuleType:
    """The functions of ``helpers.py``, without megatron-core."""
    name = "miles_megatron_test_helpers"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("helpers.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny(helpers: ModuleType) -> ModuleType:
    """Checkpoints, samples and micro-batches of the fsdp backend's tests."""
    return helpers.shared()  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def root(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of HF directories."""
    folder = tmp_path_factory.mktemp("megatron")
    helpers.write_checkpoints(folder)
    helpers.write_mimo(folder)
    return folder


@pytest.fixture(scope="session")
def results(root: Path) -> list[dict[str, Any]]:
    """What each of two processes found: see ``ranks.py``. megatron-core runs in none but them, as it has to be told it may."""
    import torch

    script = Path(__file__).with_name("ranks.py")
    logs = [root / f"rank-{rank}.log" for rank in range(WORLD)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            command = [sys.executable, str(script), str(rank), str(WORLD), str(root)]
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * WORLD, "\n".join(log.read_text()[-3000:] for log in logs)
    return [torch.load(root / f"results-{rank}.pt", weights_only=False) for rank in range(WORLD)]
