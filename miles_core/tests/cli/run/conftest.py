"""A checkpoint directory and prompts, and ``miles`` in a fresh process with the installed first-party plugins."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

HEAVY = ("torch", "ray", "transformers", "numpy", "aiohttp", "rich", "pandas")
PROBE = """\
import sys
from miles_core.cli.main import main
code = main(sys.argv[1:])
print("imported:", sorted({name.partition(".")[0] for name in sys.modules} & set(%r)), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An HF directory that passes validation."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "max_position_embeddings": 4096}), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Sixteen questions."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "answer": str(i)}) + "\n" for i in range(16)), encoding="utf-8")
    return path


@pytest.fixture
def arguments(checkpoint: Path, prompts: Path) -> list[str]:
    """A GRPO run of first-party plugins."""
    for name in ("miles-fsdp", "miles-transformers", "miles-algos", "miles-rewards"):
        try:
            distribution(name)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
    return [
        *("--backend", "fsdp", "--engine", "transformers", "--algo", "grpo", "--rm-type", "math"),
        *("--hf-checkpoint", str(checkpoint), "--prompt-data", str(prompts), "--input-key", "question", "--label-key", "answer"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "2", "--num-epoch", "2", "--rollout-max-response-len", "16"),
        *("--actor-num-gpus-per-node", "1", "--colocate", "--apply-chat-template", "--device", "cpu"),
    ]


Miles = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def miles(tmp_path: Path) -> Miles:
    """Runs ``miles`` in a process that ends by saying which heavy modules it imported."""

    def run(*words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MILES_")}
        done = subprocess.run(
            [sys.executable, "-c", PROBE % (HEAVY,), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={**kept, "COLUMNS": "100", **environment},
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "imported: []" in done.stderr
        return done

    return run
