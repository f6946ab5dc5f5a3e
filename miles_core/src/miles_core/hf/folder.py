"""An HF directory made of whole tensors, as they come."""

from __future__ import annotations

import json
import shutil
import uuid
from typing import TYPE_CHECKING

import torch.distributed as dist
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

SHARD_BYTES = 5 * 2**30


def write_hf(
    directory: Path,
    source: Path,
    tensors: Iterator[tuple[str, torch.Tensor]],
    *,
    to_host: bool,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write an HF directory, whole or not at all: rank 0 writes, all ranks iterate. Collective.

    Args:
        directory: where to; what it held is replaced.
        source: HF directory that config, generation config and tokenizer are copied from.
        tensors: the weights.
        to_host: move each tensor to host memory as it comes, not when its file is written.
        finish: called with the directory on rank 0 before it appears under its name, to change its files.
    """
    writer = dist.get_rank() == 0
    building = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}")
    if writer:
        building.mkdir(parents=True)
    places: dict[str, str] = {}
    sizes = [0]
    pending: dict[str, torch.Tensor] = {}

    def flush() -> None:
        file = f"part-{len(sizes):05d}.safetensors"
        save_file({name: tensor.cpu().contiguous() for name, tensor in pending.items()}, building / file, {"format": "pt"})
        places.update(dict.fromkeys(pending, file))
        pending.clear()
        sizes.append(0)

    for name, tensor in tensors:
        if not writer:
            continue
        size = tensor.numel() * tensor.element_size()
        if pending and sizes[-1] + size > SHARD_BYTES:
            flush()
        pending[name] = tensor.cpu() if to_host else tensor.clone()
        sizes[-1] += size
    if writer:
        flush()
        _finish(building, places, sum(sizes))
        _copy_companions(source, building)
        if finish is not None:
            finish(building)
        _swap(building, directory)
    dist.barrier()


def _finish(directory: Path, places: dict[str, str], total: int) -> None:
    """Give the files the names that transformers looks for."""
    parts = sorted(set(places.values()))
    if len(parts) == 1:
        (directory / parts[0]).rename(directory / "model.safetensors")
        return
    final = {part: f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i, part in enumerate(parts, 1)}
    for part, name in final.items():
        (directory / part).rename(directory / name)
    index = {"metadata": {"total_size": total}, "weight_map": {name: final[part] for name, part in sorted(places.items())}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _copy_companions(source: Path, target: Path) -> None:
    """Copy what belongs to the model besides its weights: config, tokenizer, templates and code."""
    for file in source.iterdir():
        wanted = file.suffix in {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"} and not file.name.endswith(".index.json")
        if file.is_file() and wanted:
            shutil.copyfile(file, target / file.name)


def _swap(new: Path, target: Path) -> None:
    old = None
    if target.exists():
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        target.rename(old)
    new.rename(target)
    if old is not None:
        shutil.rmtree(old)
