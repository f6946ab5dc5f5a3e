"""What training goes on from, under HF names and whole: it can be taken up on any other parallel sizes.

A folder for each kind of tensor (master weights, Adam's moments, overwritten copies), each a set of safetensors files with an
index, as checkpoints are. Ranks gather a bucket at a time and take turns in writing; every rank reads its own parts alone.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from miles_core.accelerator.device import accelerator
from miles_core.errors import UsageError
from miles_core.hf import HfWeights
from miles_megatron.architecture import OWNER
from miles_megatron.mapping.export import export_tensors
from miles_megatron.mapping.load import Stored, load_tensors
from miles_megatron.mapping.table import entries
from miles_megatron.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from miles_core.state import StateFiles
    from miles_megatron.architecture import Architecture
    from miles_megatron.mapping.table import Entry
    from miles_megatron.optimizer import Optimizer

FORMAT = 1
BUCKET_BYTES = 1 << 29
_FACTS = "megatron.json"


def save(
    directory: Path,
    files: StateFiles,
    chunks: Sequence[Any],
    architecture: Architecture,
    optimizer: Optimizer,
    copies: dict[str, list[torch.Tensor]],
) -> None:
    """Give master weights, optimizer, step count, copies and this rank's RNG to ``files``, for ``directory``. Collective.

    Args:
        directory: exists; folders in it are made at once.
        files: write what they are given, or hold it.
        chunks: the parts of the model, not wrapped.
        copies: weights that training changed and that no checkpoint holds, in the order of the parameters.
    """
    found, moments = entries(chunks, architecture), Moments(optimizer)
    steps = moments.steps()
    fields = moments.fields(steps)
    for field in fields:
        _write(directory / field, files, found, partial(_field, moments, field, found), architecture, torch.float32)
    for name, tensors in copies.items():
        _write(directory / f"copy-{name}", files, found, partial(_copy, tensors, found), architecture, None)
    files.pickle(directory / f"random-{dist.get_rank()}.pt", _random_state())
    if dist.get_rank() == 0:
        facts = {
            "format": FORMAT,
            "architecture": architecture.name,
            "world_size": dist.get_world_size(),
            "optimizer": optimizer.kind,
            "steps": optimizer.finished,
            "adam_steps": steps,
            "fields": list(fields),
            "copies": sorted(copies),
        }
        files.text(directory / _FACTS, json.dumps(facts, indent=2) + "\n")
    dist.barrier()


def _field(moments: Moments, field: str, found: Sequence[Entry], number: int) -> torch.Tensor:
    return moments.whole(field, found[number].param)


def _put(moments: Moments, field: str, found: Sequence[Entry], number: int, tensor: torch.Tensor) -> None:
    moments.put(field, found[number].param, tensor)


def _copy(tensors: Sequence[torch.Tensor], found: Sequence[Entry], number: int) -> torch.Tensor:
    return tensors[number].to(found[number].param.device)


def load(
    directory: Path,
    chunks: Sequence[Any],
    architecture: Architecture,
    optimizer: Optimizer,
    copies: dict[str, list[torch.Tensor]],
) -> list[str]:
    """Restore what :func:`save` wrote, in place; the RNG only on as many ranks as saved it. Collective.

    Args:
        copies: where to write copies that were saved.

    Returns:
        the names of those.

    Raises:
        UsageError: the state is not there, or of another model or optimizer (M344).
    """
    facts = _read(directory)
    for what, mine in (("architecture", architecture.name), ("optimizer", optimizer.kind)):
        if facts[what] != mine:
            raise _misfit(directory, f"its {what} is {facts[what]}, and not {mine}")
    if odd := sorted(set(facts["copies"]) - copies.keys()):
        raise _misfit(directory, f"it has weights {odd[0]}, which this run does not keep")
    found, moments = entries(chunks, architecture), Moments(optimizer)
    moments.begin(facts["fields"], facts["adam_steps"])
    for field in facts["fields"]:
        targets = (torch.empty_like(each.param, dtype=torch.float32) for each in found)
        _fill(
            directory,
            directory / field,
            found,
            targets,
            architecture,
            partial(_put, moments, field, found),
        )
    for name in facts["copies"]:
        _fill(directory, directory / f"copy-{name}", found, iter(copies[name]), architecture, lambda i, tensor: None)
    optimizer.finished = facts["steps"]
    if facts["world_size"] == dist.get_world_size():
        _set_random_state(torch.load(directory / f"random-{dist.get_rank()}.pt", weights_only=True))
    dist.barrier()
    return list(facts["copies"])


def _write(
    folder: Path,
    files: StateFiles,
    found: Sequence[Entry],
    take: Callable[[int], torch.Tensor],
    architecture: Architecture,
    dtype: torch.dtype | None,
) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    places: dict[str, str] = {}
    for number, bucket in enumerate(export_tensors(found, take, architecture, BUCKET_BYTES, dtype)):
        file = f"part-{number:05d}.safetensors"
        places.update((name, file) for name, _ in bucket)
        if number % world == rank:
            files.tensors(folder / file, bucket)
    if rank == 0:
        index = {"metadata": {}, "weight_map": places}
        files.text(folder / "model.safetensors.index.json", json.dumps(index))
    dist.barrier()


def _fill(
    directory: Path,
    folder: Path,
    found: Sequence[Entry],
    targets: Any,
    architecture: Architecture,
    done: Callable[[int, torch.Tensor], None],
) -> None:
    try:
        weights = HfWeights(folder)
        stored = Stored(weights)
        for number, entry in enumerate(found):
            target = next(targets)
            load_tensors([entry], [target], architecture, stored)
            done(number, target)
        weights.close()
    except UsageError as cause:
        raise _misfit(directory, cause.what) from cause


def _read(directory: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((directory / _FACTS).read_text(encoding="utf-8"))
        known = facts["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise _misfit(directory, f"{_FACTS} cannot be read ({cause})") from cause
    if not known:
        raise _misfit(directory, f"its format is {facts['format']} and not {FORMAT}")
    return facts


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
