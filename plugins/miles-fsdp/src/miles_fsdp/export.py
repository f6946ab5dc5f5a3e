"""The weights as a checkpoint has them: whole, under its names, in its dtypes; and an HF directory made of them."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from miles_fsdp import value_head
from miles_fsdp.conversion import is_converted, to_checkpoint
from miles_fsdp.model import parameter_names
from miles_fsdp.optimizer import local

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

SHARD_BYTES = 5 * 2**30
_LAYER = re.compile(r"\.\d+\.")


def whole_weights(model: nn.Module, dtypes: dict[str, torch.dtype], device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight as the checkpoint stores it, one tensor (for converted models one layer) at a time. Collective.

    Args:
        model: with sharded parameters.
        dtypes: of the checkpoint's tensors, by name; a tied weight comes under the name that is there.
        device: where ranks exchange their shards, and where the tensors are.

    Yields:
        name and tensor. With one rank and equal dtypes the tensor is the parameter itself: copy it before the next step.
    """
    aliases = parameter_names(model)
    parameters = dict(model.named_parameters())
    buffers = {name: buffer.detach() for name, buffer in model.named_buffers() if name in dtypes}
    if not is_converted(model):
        for name, param in parameters.items():
            stored = next((alias for alias in aliases[name] if alias in dtypes), name)
            yield stored, gather(param, dtypes.get(stored, param.dtype), device)
        yield from buffers.items()
        return
    kind = next(iter(dtypes.values()))
    group: dict[str, torch.Tensor] = {}
    previous = None
    for name, param in parameters.items():
        layer = _LAYER.split(name, maxsplit=1)[0] + (m.group() if (m := _LAYER.search(name)) else "")
        if layer != previous and group:
            yield from _converted(model, group, dtypes)
            group = {}
        previous = layer
        # Rounding commutes with moving elements about, so the traffic is in the checkpoint's dtype where there is only one.
        one = len(set(dtypes.values())) == 1
        group[name] = gather(param, kind if one and name not in value_head.NAMES else param.dtype, device)
    yield from _converted(model, group, dtypes)
    yield from buffers.items()


def _converted(
    model: nn.Module, group: dict[str, torch.Tensor], dtypes: dict[str, torch.dtype]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in to_checkpoint(model, group).items():
        yield name, tensor.to(dtypes.get(name, tensor.dtype)).contiguous()


def gather(param: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A sharded parameter, whole, on every rank. Collective."""
    assert isinstance(param, DTensor)
    shard = local(param).detach().to(device, dtype)
    if param.device_mesh.size() == 1:
        return shard
    whole = DTensor.from_local(
        shard, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )
    return whole.full_tensor()


def write_hf(
    directory: Path, source: Path, tensors: Iterator[tuple[str, torch.Tensor]], *, to_host: bool, critic: bool = False
) -> None:
    """Write an HF directory, whole or not at all: rank 0 writes, all ranks iterate. Collective.

    Args:
        directory: where to; what it held is replaced.
        source: HF directory that config, generation config and tokenizer are copied from.
        tensors: the weights.
        to_host: move each tensor to host memory as it comes, not when its file is written.
        critic: the model has a value head.
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
        if critic:
            value_head.describe(building)
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
