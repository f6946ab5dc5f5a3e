"""Who holds which part of the weights: all ranks together, groups of them, or one rank by itself."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from miles_core.numerics.compiler import allow_programs
from miles_fsdp import value_head
from miles_fsdp.checks import REPLICATE, misfit

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from miles_fsdp.policy import Policy


def shard_mesh(device: str, replicas: int) -> DeviceMesh:
    """All ranks, which share the weights out, or as many groups of neighbours, each of which does. Collective.

    Raises:
        UsageError: there are no groups of equal size (M580).
    """
    world = dist.get_world_size()
    if replicas == 1:
        return init_device_mesh(device, (world,))
    if world % replicas:
        raise misfit("M580", f"{REPLICATE} {replicas} does not fit the run", f"{world} ranks are no multiple of it")
    return init_device_mesh(device, (replicas, world // replicas), mesh_dim_names=("replica", "shard"))


def shard_group(mesh: DeviceMesh) -> dist.ProcessGroup | None:
    """The ranks that share the weights out with this one; None if there are none."""
    last = mesh.ndim - 1
    return mesh.get_group(last) if mesh.size(last) > 1 else None


def place_of(tensor: torch.Tensor) -> tuple[int, int]:
    """This rank's place among those that share a parameter's rows out, and how many they are."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return 0, 1
    last = mesh.ndim - 1
    return mesh.get_local_rank(last), mesh.size(last)


def blocks_of(model: Any) -> list[nn.Module]:
    """The decoder layers, or whatever else the model says should stay in one piece."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def prepare(blocks: list[nn.Module], *, recompute: bool, compiled: bool) -> None:
    """Have each layer run as the options say, by its ``forward``: FSDP's hooks stay outside of it.

    Args:
        recompute: recompute its activations in the backward pass.
        compiled: compile it, once for micro-batches of any length.
    """
    if compiled:
        allow_programs()
    for block in blocks:
        forward = torch.compile(block.forward, dynamic=True) if compiled else block.forward
        if recompute:
            forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = forward  # type: ignore[assignment]


def shard(policy: Policy, blocks: list[nn.Module], mesh: DeviceMesh, *, cpu_offload: bool) -> None:
    """Shard each decoder layer, then the rest, over the last dimension of ``mesh``; gradients are summed over all of it in fp32.

    Args:
        cpu_offload: keep the shards in host memory.
    """
    precision = MixedPrecisionPolicy(param_dtype=policy.compute, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()
    # A shard of one rank has nothing to gather: keeping the layer's compute copy until its backward saves a second cast.
    reshard = mesh.size(mesh.ndim - 1) > 1
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=reshard)
    head = value_head.of(policy.model)
    if head is not None:
        # Values are regressed on, which bf16 is too coarse for: their head takes part in fp32 whatever the rest does.
        exact = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
        fully_shard(head, mesh=mesh, mp_policy=exact, offload_policy=offload, reshard_after_forward=False)
    fully_shard(policy, mesh=mesh, mp_policy=precision, offload_policy=offload)
    for part in (*blocks, *([head] if head is not None else []), policy):
        # Neither setting reaches the modules inside, and without them FSDP takes the mean.
        part.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        part.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]


def reshard(policy: Policy) -> None:
    """Drop gathered parameters, which FSDP keeps after a forward pass without a backward one and would take for current."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def exchange_gradients(policy: Policy, wanted: bool) -> None:
    """Whether ranks add up their gradients in the next backward passes; a rank that has all weights by itself has nobody to."""
    if isinstance(policy, FSDPModule):
        policy.set_requires_gradient_sync(wanted)
