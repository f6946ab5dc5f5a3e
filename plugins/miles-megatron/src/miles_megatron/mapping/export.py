"""Whole tensors under their HF names, from all ranks' parts, a bucket at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from miles_core.hf import write_hf
from miles_megatron.mapping.layouts import LAYOUTS
from miles_megatron.mapping.table import Entry, entries, local_experts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from miles_megatron.architecture import Architecture

Named = list[tuple[str, torch.Tensor]]


def export_hf(chunks: Sequence[Any], architecture: Architecture, bucket_bytes: int) -> Iterator[Named]:
    """The model's weights, whole, in buckets of about so many bytes, on every rank. Collective.

    No rank ever holds more than its own parts and one bucket.
    """
    found = entries(chunks, architecture)
    yield from export_tensors(found, lambda number: found[number].param.detach(), architecture, bucket_bytes)


def save_hf(buckets: Iterable[Named], directory: Path, source: Path, finish: Callable[[Path], None] | None = None) -> None:
    """Write an HF directory, whole or not at all; config and tokenizer are the source's. Collective.

    Args:
        buckets: the weights, as :func:`export_hf` gives them.
        finish: see :func:`miles_core.hf.write_hf`.
    """
    tensors = (pair for bucket in buckets for pair in bucket)
    write_hf(directory, source, tensors, to_host=True, finish=finish)


@dataclass(frozen=True)
class _Part:
    """What all ranks know of a parameter of some pipeline stage: its place among the stage's own, and its part's shape."""

    names: tuple[str, ...]
    expert: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@torch.no_grad()
def export_tensors(
    found: Sequence[Entry],
    take: Callable[[int], torch.Tensor],
    architecture: Architecture,
    bucket_bytes: int,
    dtype: torch.dtype | None = None,
) -> Iterator[Named]:
    """The same of tensors that belong to parameters and have their shapes. Collective.

    Args:
        found: this rank's parameters.
        take: gives the tensor of one of them, by its number, on the parameter's device, when its turn comes.
        dtype: of all tensors; None for that of each parameter.
    """
    seen: set[str] = set()
    for stage in range(parallel_state.get_pipeline_model_parallel_world_size()):
        parts = _stage_parts(stage, found, dtype)
        for members in _buckets(parts, bucket_bytes):
            mine = None
            if stage == parallel_state.get_pipeline_model_parallel_rank():
                mine = [take(i) for i in members]
            gathered = _gathered(stage, [parts[i] for i in members], mine, found[0].param.device)
            bucket: Named = []
            for number, shares in zip(members, gathered, strict=True):
                part = parts[number]
                for rank, whole in enumerate(shares):
                    names = _hf_names(part, rank, local_experts(architecture))
                    # The last stage of a tied model has the embedding, too.
                    if names[0] in seen:
                        continue
                    seen.update(names)
                    bucket += zip(names, LAYOUTS[part.layout].join(whole, architecture), strict=True)
            if bucket:
                yield bucket


def _hf_names(part: _Part, rank: int, local: int) -> tuple[str, ...]:
    return part.names if part.expert is None else tuple(name.format(rank * local + part.expert) for name in part.names)


def _stage_parts(stage: int, found: Sequence[Entry], dtype: torch.dtype | None) -> list[_Part]:
    """What the ranks of a pipeline stage hold, which they tell the others."""
    parts: list[_Part] = []
    if stage == parallel_state.get_pipeline_model_parallel_rank():
        for entry in found:
            kind = dtype or entry.param.dtype
            parts.append(_Part(entry.names, entry.expert, tuple(entry.param.shape), kind, entry.layout.name))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        box = [parts]
        dist.broadcast_object_list(box, src=dist.get_process_group_ranks(group)[stage], group=group)
        parts = box[0]
    return parts


def _buckets(parts: Sequence[_Part], limit: int) -> Iterator[list[int]]:
    """Numbers of parts that go together: of one dtype and group of ranks, in their order."""
    members: list[int] = []
    size = 0
    for number, part in enumerate(parts):
        ranks = _ranks(part.expert is not None)
        first = parts[members[0]] if members else part
        together = (first.dtype, first.expert is None) == (part.dtype, part.expert is None)
        if members and (not together or size + part.bytes * ranks > limit):
            yield members
            members, size = [], 0
        members.append(number)
        size += part.bytes * ranks
    if members:
        yield members


def _ranks(expert: bool) -> int:
    if not expert:
        return parallel_state.get_tensor_model_parallel_world_size()  # type: ignore[no-any-return]
    return parallel_state.get_expert_tensor_parallel_world_size() * parallel_state.get_expert_model_parallel_world_size()  # type: ignore[no-any-return]


def _gathered(
    stage: int, parts: Sequence[_Part], mine: Sequence[torch.Tensor] | None, device: torch.device
) -> list[list[list[torch.Tensor]]]:
    """For each part, for each expert-parallel rank (one if it is no expert's), the parts of all tensor-parallel ranks."""
    expert = parts[0].expert is not None
    sizes = [math.prod(part.shape) for part in parts]
    experts = parallel_state.get_expert_model_parallel_world_size() if expert else 1
    sharing = _ranks(expert) // experts
    if mine is not None:
        flat = torch.cat([tensor.reshape(-1) for tensor in mine])
        if expert:
            flat = _all(flat, parallel_state.get_expert_tensor_parallel_group(), sharing)
            flat = _all(flat, parallel_state.get_expert_model_parallel_group(), experts)
        else:
            flat = _all(flat, parallel_state.get_tensor_model_parallel_group(), sharing)
    else:
        flat = torch.empty(sum(sizes) * sharing * experts, dtype=parts[0].dtype, device=device)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        dist.broadcast(flat, src=dist.get_process_group_ranks(group)[stage], group=group)
    pieces = flat.view(experts, sharing, -1).split(sizes, -1)  # type: ignore[no-untyped-call]
    return [
        [[piece[rank, share].view(part.shape) for share in range(sharing)] for rank in range(experts)]
        for part, piece in zip(parts, pieces, strict=True)
    ]


def _all(flat: torch.Tensor, group: dist.ProcessGroup, size: int) -> torch.Tensor:
    if size == 1:
        return flat
    found = flat.new_empty(size * flat.numel())
    dist.all_gather_into_tensor(found, flat, group=group)
    return found
