"""On ``PYTHONPATH``, lets the megatron backend run on a CPU: what its tests do, in every process that builds it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

CPU = Path(__file__).parents[2] / "plugins" / "miles-megatron" / "tests" / "cpu.py"


class Watch:
    """Changes PyTorch's mind about CUDA when the backend is about to be imported, and finds nothing."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name == "miles_megatron.backend":
            sys.meta_path.remove(Watch)  # type: ignore[arg-type]
            spec = importlib.util.spec_from_file_location("megatron_on_cpu", CPU)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            module.apply()


sys.meta_path.insert(0, Watch)  # type: ignore[arg-type]
