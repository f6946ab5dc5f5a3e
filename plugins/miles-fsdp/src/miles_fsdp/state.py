"""Saving and restoring what training goes on from, sharded, with ``torch.distributed.checkpoint``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from miles_core.accelerator.device import accelerator
from miles_core.errors import UsageError
from miles_core.state import HeldState, StateFiles, host_copy

if TYPE_CHECKING:
    from pathlib import Path

    from torch.distributed.checkpoint.planner import SavePlan, WriteItem

    from miles_fsdp.optimizer import ShardedOptimizer
    from miles_fsdp.policy import Policy

OWNER = "miles-fsdp"
FORMAT = 1
_FACTS = "fsdp.json"
_SHARDS = "shards"


def save_state(directory: Path, policy: Policy, optimizer: ShardedOptimizer, copies: dict[str, Policy]) -> None:
    """Write model, optimizer, step count and this rank's RNG into ``directory``. Collective.

    Args:
        copies: weight sets that training changed and that no checkpoint holds.
    """
    save(_tensors(policy, optimizer, copies), checkpoint_id=directory / _SHARDS)
    _describe(StateFiles(), directory, optimizer, copies)
    dist.barrier()


def hold_state(directory: Path, policy: Policy, optimizer: ShardedOptimizer, copies: dict[str, Policy]) -> HeldState:
    """Copy to host memory what :func:`save_state` writes, and agree on who writes what. Collective."""
    planner, writer = _HeldPlanner(), FileSystemWriter(directory / _SHARDS, per_thread_copy_ahead=0)
    rank, world = dist.get_rank(), dist.get_world_size()
    planner.set_up_planner(_tensors(policy, optimizer, copies), writer.storage_meta(), rank == 0)
    writer.set_up_storage_writer(rank == 0, rank=rank, use_collectives=True)
    plans: list[Any] = [None] * world
    dist.all_gather_object(plans, writer.prepare_local_plan(planner.create_local_plan()))
    # Every rank makes the same plan of all.
    plans, metadata = planner.create_global_plan(plans)
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[rank])
    planner.hold(plan)
    files = StateFiles(hold=True)
    _describe(files, directory, optimizer, copies)

    def write() -> Any:
        written = writer.write_data(plan, planner).wait()
        planner.release()
        files.write()
        return written

    return HeldState(write, lambda parts: writer.finish(metadata, list(parts)))


class _HeldPlanner(DefaultSavePlanner):
    """Takes the tensors out of copies in host memory."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[Any, torch.Tensor] = {}

    def hold(self, plan: SavePlan) -> None:
        """Copy all that this rank writes, and let go of the rest."""
        self._held = {item.index: host_copy(self.resolve_data(item)) for item in plan.items}
        self.state_dict = {}

    def release(self) -> None:
        """Free the copies."""
        self._held = {}

    def resolve_data(self, write_item: WriteItem) -> Any:
        """The copy of an item; before there are copies, the tensor itself."""
        return self._held[write_item.index] if self._held else super().resolve_data(write_item)


def _describe(files: StateFiles, directory: Path, optimizer: ShardedOptimizer, copies: dict[str, Policy]) -> None:
    """This rank's RNG, and on rank 0 what the state says of itself."""
    files.pickle(directory / f"random-{dist.get_rank()}.pt", _random_state())
    if dist.get_rank() == 0:
        facts = {
            "format": FORMAT,
            "world_size": dist.get_world_size(),
            "optimizer": optimizer.kind,
            "steps": optimizer.finished,
            "copies": sorted(copies),
        }
        files.text(directory / _FACTS, json.dumps(facts, indent=2) + "\n")


def read_facts(directory: Path) -> dict[str, Any]:
    """What a saved state says of itself.

    Raises:
        UsageError: it is missing or of another format (M344).
    """
    try:
        facts: dict[str, Any] = json.loads((directory / _FACTS).read_text())
        known = facts["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise _misfit(directory, f"{_FACTS} cannot be read ({cause})") from cause
    if not known:
        raise _misfit(directory, f"its format is {facts['format']} and not {FORMAT}")
    return facts


def load_state(
    directory: Path, facts: dict[str, Any], policy: Policy, optimizer: ShardedOptimizer, copies: dict[str, Policy]
) -> None:
    """Restore what :func:`save_state` wrote, in place; the RNG only on as many ranks as saved it. Collective.

    Raises:
        UsageError: the state is of another model or optimizer (M344).
    """
    if facts["optimizer"] != optimizer.kind:
        raise _misfit(directory, f"it was trained with --optimizer {facts['optimizer']}, not {optimizer.kind}")
    optimizer.finished = facts["steps"]
    tensors = _tensors(policy, optimizer, copies)
    _check(directory, tensors)
    load(tensors, checkpoint_id=directory / _SHARDS)
    if facts["world_size"] == dist.get_world_size():
        _set_random_state(torch.load(directory / f"random-{dist.get_rank()}.pt", weights_only=True))
    for each in (policy, *copies.values()):
        each.masters.refresh()
    dist.barrier()


def _tensors(policy: Policy, optimizer: ShardedOptimizer, copies: dict[str, Policy]) -> dict[str, torch.Tensor]:
    parameters = policy.weights()
    tensors: dict[str, torch.Tensor] = {f"model/{name}": param.detach() for name, param in parameters.items()}
    for name, entry in optimizer.state().items():
        for field, tensor in entry.items():
            tensors[f"optimizer/{name}/{field}"] = _like(tensor, parameters[name]) if tensor.dim() else tensor
    for copy, other in copies.items():
        tensors |= {f"copies/{copy}/{name}": param.detach() for name, param in other.weights().items()}
    return tensors


def _like(shard: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    if not isinstance(param, DTensor):
        return shard
    return DTensor.from_local(shard, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride())


def _check(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        saved = FileSystemReader(directory / _SHARDS).read_metadata().state_dict_metadata
    except (OSError, ValueError, EOFError) as cause:
        raise _misfit(directory, f"its shards cannot be read ({cause})") from cause
    for name, tensor in tensors.items():
        size = getattr(saved.get(name), "size", None)
        if size != tensor.shape:
            there = "lacks it" if size is None else f"has {list(size)}"
            raise _misfit(directory, f"the model has {name} of shape {list(tensor.shape)} and the state {there}")
    further = sorted(saved.keys() - tensors.keys())
    if further:
        raise _misfit(directory, f"the state has {further[0]}, which the model lacks")


def _misfit(directory: Path, why: str) -> UsageError:
    fix = "resume with the options and the checkpoint that the run was started with, or start fresh without --load"
    return UsageError("M344", f"cannot resume from {directory}", owner=OWNER, why=why, fix=fix)


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    here = accelerator()
    if (device := here.random_state()) is not None:
        state[here.type] = device
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    here = accelerator()
    if here.type in state.keys() - {"cpu"}:
        here.set_random_state(state[here.type])
