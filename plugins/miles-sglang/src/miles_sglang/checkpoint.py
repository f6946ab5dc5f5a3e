"""What a checkpoint's files hold, from their headers alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from miles_core.errors import UsageError

CONFIG = "config.json"
HEADER_LIMIT = 100_000_000
"""Bytes. A longer header is no header."""


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a folder's safetensors files, without those that are computed; empty where there are none.

    Raises:
        UsageError: M516, a file cannot be read.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                (size,) = struct.unpack("<Q", stream.read(8))
                if size > HEADER_LIMIT:
                    raise ValueError(f"its header claims {size} bytes")
                header = json.loads(stream.read(size))
            found |= {name: tuple(about["shape"]) for name, about in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, struct.error) as error:
            fix = "save the checkpoint again"
            raise UsageError("M516", f"{file} cannot be read", owner="miles-sglang", why=str(error), fix=fix) from error
    return {name: shape for name, shape in found.items() if "rotary_emb" not in name}


def ties_head(folder: Path) -> bool:
    """Whether the model's head is its embedding."""
    return bool(_config(folder).get("tie_word_embeddings", False))


def checkpoint_dtype(folder: Path) -> str:
    """What the checkpoint says it is stored in: ``bfloat16``; empty when it says nothing."""
    config = _config(folder)
    return str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")


def _config(folder: Path) -> dict[str, Any]:
    """The configuration; that of the text model of a multimodal one, with what is above it."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    inner = config.get("text_config") if isinstance(config, dict) else None
    return {**(inner if isinstance(inner, dict) else {}), **config} if isinstance(config, dict) else {}
