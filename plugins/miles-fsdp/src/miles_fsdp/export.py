"""The weights as a checkpoint has them: whole, under its names, in its dtypes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from miles_core.hf import HfWeights
from miles_fsdp import value_head
from miles_fsdp.conversion import is_converted, to_checkpoint
from miles_fsdp.model import left_out, parameter_names
from miles_fsdp.optimizer import local

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from miles_fsdp.policy import Policy

_LAYER = re.compile(r"\.\d+\.")


def carried(policy: Policy, source: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint has besides the model's parameters, unchanged; on rank 0, which alone writes."""
    if dist.get_rank() == 0:
        weights = HfWeights(source)
        for name in left_out(policy.model, weights):
            yield name, weights.read(name)
        weights.close()


def whole_weights(policy: Policy, dtypes: dict[str, torch.dtype], device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight as the checkpoint stores it, one tensor (for converted models one layer) at a time. Collective.

    Args:
        policy: the model, whose weights may be sharded.
        dtypes: of the checkpoint's tensors, by name; a tied weight comes under the name that is there.
        device: where ranks exchange their shards, and where the tensors are.

    Yields:
        name and tensor. With one rank and equal dtypes the tensor is the parameter itself: copy it before the next step.
    """
    model = policy.model
    aliases = parameter_names(model)
    parameters = policy.weights()
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
    """A parameter that may be sharded, whole, on every rank. Collective."""
    shard = local(param).detach().to(device, dtype)
    if not isinstance(param, DTensor) or param.device_mesh.size(param.device_mesh.ndim - 1) == 1:
        return shard
    whole = DTensor.from_local(
        shard, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )
    return whole.full_tensor()
