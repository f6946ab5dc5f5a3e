"""This rank's parameters, from an HF directory of which it reads no more than it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state

from miles_core.errors import UsageError
from miles_core.hf import HfWeights
from miles_megatron import tensors, value_head
from miles_megatron.architecture import OWNER
from miles_megatron.mapping.table import Entry, entries, local_experts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from miles_megatron.architecture import Architecture


def load_hf(chunks: Sequence[Any], architecture: Architecture, folder: Path) -> None:
    """Fill the chunks' parameters. A value head that the directory does not have stays as it is.

    Raises:
        UsageError: the directory cannot be read (M340), lacks tensors, has ones of no parameter (M342), or of other shapes (M343).
    """
    weights = HfWeights(folder)
    stored = Stored(weights)
    found = entries(chunks, architecture)
    has_head = value_head.NAMES[0] in weights.tensors
    wanted = [each for each in found if has_head or each.names[0] not in value_head.NAMES]
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    # Every rank looks at all tensors, so that none waits for another one that has given up.
    for problem in tensors.problems(architecture, shapes, folder, headless=has_head or any(map(value_head.of, chunks))):
        raise problem
    load_tensors(wanted, [each.param.data for each in wanted], architecture, stored)
    weights.close()


@torch.no_grad()
def load_tensors(wanted: Sequence[Entry], targets: Sequence[torch.Tensor], architecture: Architecture, stored: Stored) -> None:
    """Write this rank's part of stored tensors into tensors of the parameters' shapes.

    Raises:
        UsageError: a part has not its target's shape (M343).
    """
    expert_rank, local = parallel_state.get_expert_model_parallel_rank(), local_experts(architecture)
    for entry, target in zip(wanted, targets, strict=True):
        names = entry.hf_names(expert_rank, local)
        part = entry.layout.part(stored, names, *tensor_place(entry), architecture)
        if names[0] in ("model.embed_tokens.weight", "lm_head.weight") and len(part) < len(target):
            part = torch.cat([part, part.new_zeros(len(target) - len(part), *part.shape[1:])])
        if part.shape != target.shape:
            raise UsageError(
                "M343",
                f"{' and '.join(names)} of {stored.weights.directory} do not fit the model",
                owner=OWNER,
                why=f"this rank's part has shape {list(part.shape)}, and the parameter has {list(target.shape)}",
                fix="let --custom-model-provider-path build a model of the sizes that config.json says",
            )
        target.copy_(part)


def tensor_place(entry: Entry) -> tuple[int, int]:
    """Rank and number of the ranks that share a parameter."""
    if entry.expert is None:
        return parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    return parallel_state.get_expert_tensor_parallel_rank(), parallel_state.get_expert_tensor_parallel_world_size()


class Stored:
    """An HF directory as :class:`miles_megatron.mapping.layouts.Tensors`."""

    def __init__(self, weights: HfWeights) -> None:
        self.weights = weights

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor.

        Raises:
            UsageError: there is none of that name (M342).
        """
        found = self.weights.tensors.get(name)
        if found is None:
            raise tensors.names_error(self.weights.directory, f"{name} is missing")
        return found.shape

    def part(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """``[start, stop)`` along a dimension."""
        if dim == 0:
            return self.weights.read(name, (start, stop))
        return self.weights.read_columns(name, start, stop)
