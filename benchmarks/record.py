"""Saving a benchmark's figures with what they were measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    *("miles-core", "torch", "ray", "transformers", "numpy", "aiohttp", "math-verify", "sympy"),
    *("megatron-core", "sglang", "flash-attn-4", "triton"),
)


def save(name: str, figures: dict[str, Any], notes: str = "", folder: Path | None = None) -> Path:
    """Write ``results/<name>.json`` and print it.

    Args:
        name: file name without ending.
        figures: what was measured; keys carry units.
        notes: what a reader must know to compare.
        folder: where to write instead of ``benchmarks/results``.
    """
    target = (folder or RESULTS) / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *(os.path.relpath(a) if os.path.exists(a) else a for a in sys.argv)]),
        "hardware": hardware(),
        "versions": versions(),
        "notes": notes,
        "figures": figures,
    }
    target.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    return target


def hardware() -> str:
    """The accelerator if there is one, and the processor."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"{cores} cores of {model}"
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        torch = sys.modules["torch"]
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {cpu}"
    return cpu


def versions() -> dict[str, str]:
    """Python and the libraries that matter here."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
