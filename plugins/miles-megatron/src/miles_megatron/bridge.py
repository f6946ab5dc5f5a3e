"""Conversion of weights by the package megatron-bridge: ``--megatron-to-hf-mode bridge``.

megatron-bridge says which tensors of a checkpoint a parameter is made of and how ranks share it, and exchanges the parts. It knows
models by the names of Transformer Engine's layers, in which the experts of a rank are one module, and takes vocabularies that need
no padding. Here models keep megatron-core's local layers: :func:`_twin` shows them under those names, with the same parameters, and
:class:`_Vocabulary` adds rows of padding and takes them away. Importing this module imports megatron-bridge.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from megatron.bridge import AutoBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping, ColumnParallelMapping
from megatron.core import parallel_state

from miles_core.errors import UsageError
from miles_core.hf import HfWeights
from miles_megatron import tensors
from miles_megatron.architecture import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from miles_megatron.architecture import Architecture

Named = list[tuple[str, torch.Tensor]]
EMBEDDING = "model.embed_tokens.weight"
VOCABULARY = (EMBEDDING, "lm_head.weight")


class BridgeConversion:
    """:class:`miles_megatron.conversion.Conversion` by megatron-bridge."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint

    @torch.no_grad()
    def load_hf(self, chunks: Sequence[Any], architecture: Architecture, folder: Path) -> None:
        """Fill the chunks' parameters. Collective: of tensor-parallel ranks the first one reads, and gives the others their parts.

        Raises:
            UsageError: the directory cannot be read (M340), lacks tensors, has ones of no parameter (M342), or of other shapes
                (M343), or megatron-bridge does not know the model (M579).
        """
        weights = HfWeights(folder)
        shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
        for problem in tensors.problems(architecture, shapes, folder, headless=False):
            raise problem
        bridge = _bridge(folder)
        for task in [*_tasks(bridge, chunks, architecture), *_tied_copies(chunks, architecture)]:
            if task.megatron_module is None:
                continue
            names, target = task.mapping.hf_param, task.param_weight
            found: Any = (
                weights.read(names).to(target.dtype)
                if isinstance(names, str)
                else {key: weights.read(name).to(target.dtype) for key, name in names.items()}
            )
            target.data.copy_(task.mapping.hf_to_megatron(found, task.megatron_module))
        weights.close()

    @torch.no_grad()
    def export_hf(self, chunks: Sequence[Any], architecture: Architecture, bucket_bytes: int) -> Iterator[Named]:
        """The model's weights, whole, in buckets of about so many bytes, on every rank. Collective.

        megatron-bridge gathers one parameter after the other; no rank ever holds more than its own parts and one bucket.

        Raises:
            UsageError: megatron-bridge does not know the model (M579).
        """
        bridge = _bridge(self._checkpoint)
        twins = [_twin(chunk, architecture) for chunk in chunks]
        tasks = _tasks(bridge, chunks, architecture, twins)
        bucket: Named = []
        size = 0
        for name, tensor in bridge.export_hf_weights(twins, cpu=False, show_progress=False, conversion_tasks=tasks):
            if architecture.tied and name == "lm_head.weight":
                # A checkpoint may have it nevertheless; it is the embedding.
                continue
            if bucket and size + tensor.nbytes > bucket_bytes:
                yield bucket
                bucket, size = [], 0
            # What is not gathered is a view of the parameter, which training goes on to change.
            bucket.append((name, tensor.detach().clone(memory_format=torch.contiguous_format)))
            size += tensor.nbytes
        if bucket:
            yield bucket


def _bridge(folder: Path) -> Any:
    try:
        return AutoBridge.from_hf_pretrained(str(folder))
    except (ValueError, OSError) as cause:
        raise _unknown(f"megatron-bridge cannot convert {folder}", _first_line(cause)) from cause


def _tasks(bridge: Any, chunks: Sequence[Any], architecture: Architecture, twins: list[Any] | None = None) -> list[Any]:
    """What megatron-bridge does for each parameter of all pipeline stages; the same list on all of them."""
    for name, kind in ((_ExpertColumns.__name__, "column"), (_ExpertRows.__name__, "row"), ("RMSNorm", "replicated")):
        AutoMapping.register_module_type(name, kind)
    twins = [_twin(chunk, architecture) for chunk in chunks] if twins is None else twins
    try:
        tasks = bridge.get_conversion_tasks(twins)
    except ValueError as cause:
        raise _unknown(f"megatron-bridge cannot convert models of the family {architecture.name}", _first_line(cause)) from cause
    held = {id(task.param_weight) for task in tasks if task is not None and task.param_weight is not None}
    lost = [name for twin in twins for name, param in twin.named_parameters() if id(param) not in held]
    if architecture.tied:
        lost = [name for name in lost if name != "output_layer.weight"]
    if None in tasks or lost:
        why = f"it has no mapping of {lost[0] if lost else 'a parameter of another pipeline stage'}"
        raise _unknown(f"megatron-bridge cannot convert models of the family {architecture.name}", why)
    return [_padding(task, architecture) for task in tasks]


def _padding(task: Any, architecture: Architecture) -> Any:
    mapping = task.mapping
    if mapping.hf_param not in VOCABULARY:
        return task
    return dataclasses.replace(task, mapping=_Vocabulary(mapping.megatron_param, mapping.hf_param, architecture))


@dataclasses.dataclass(frozen=True)
class _Copy:
    """What is done for a parameter that megatron-bridge leaves out."""

    mapping: Any
    megatron_module: Any
    param_weight: Any


def _tied_copies(chunks: Sequence[Any], architecture: Architecture) -> list[_Copy]:
    """The last pipeline stage's own copy of a tied model's embedding, which megatron-bridge leaves out."""
    if not architecture.tied or parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return []
    last = chunks[-1]
    head = getattr(last, "output_layer", None) if last.post_process else None
    if head is None or head.weight is None:
        return []
    return [_Copy(_Vocabulary("output_layer.weight", EMBEDDING, architecture), head, head.weight)]


class _Vocabulary(ColumnParallelMapping):  # type: ignore[misc]
    """Embedding and head, whose last rows are padding, which checkpoints do not have.

    Args:
        megatron_param, hf_param: the names.
        architecture: of which the vocabulary's size and its padding are read.
    """

    def __init__(self, megatron_param: str, hf_param: str, architecture: Architecture) -> None:
        super().__init__(megatron_param, hf_param)
        self._architecture = architecture

    def hf_to_megatron(self, hf_weights: torch.Tensor, megatron_module: torch.nn.Module) -> torch.Tensor:
        """This rank's rows of ``[V, H]``, with zeros for padding."""
        rows = self._architecture.padded_vocab(parallel_state.get_tensor_model_parallel_world_size())
        padding = hf_weights.new_zeros(rows - len(hf_weights), *hf_weights.shape[1:])
        return super().hf_to_megatron(torch.cat([hf_weights, padding]), megatron_module)  # type: ignore[no-any-return]

    def megatron_to_hf(
        self, megatron_weights: torch.Tensor | None, megatron_module: torch.nn.Module | None
    ) -> dict[str, torch.Tensor]:
        """``[V, H]``, without padding."""
        found = super().megatron_to_hf(megatron_weights, megatron_module)
        return {name: tensor[: self._architecture.vocab_size] for name, tensor in found.items()}


class _Experts(torch.nn.Module):
    """One of the matrices of all of a rank's experts, as ``weight0``, ``weight1`` and so on."""

    def __init__(self, weights: Sequence[torch.nn.Parameter], config: Any) -> None:
        super().__init__()
        self.config = config
        for number, weight in enumerate(weights):
            self.register_parameter(f"weight{number}", weight)


class _ExpertColumns(_Experts):
    """The first matrix, of which expert-tensor-parallel ranks share the rows."""


class _ExpertRows(_Experts):
    """The second one, of which they share the columns."""


def _twin(chunk: Any, architecture: Architecture) -> Any:
    """A chunk with the same parameters under the names that megatron-bridge knows. It computes nothing.

    megatron-bridge marks modules with their config: what it marks are shallow copies.
    """
    twin = _copied(chunk)
    twin.config = copy.copy(chunk.config)
    # Its later versions ask the config.
    twin.config.share_embeddings_and_output_weights = architecture.tied
    return twin


def _copied(module: torch.nn.Module) -> Any:
    experts: Any = getattr(module, "local_experts", None)
    if experts is not None:
        twin = torch.nn.Module()
        config = experts[0].config
        twin.linear_fc1 = _ExpertColumns([each.linear_fc1.weight for each in experts], config)
        twin.linear_fc2 = _ExpertRows([each.linear_fc2.weight for each in experts], config)
        return twin
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else _copied(child) for name, child in module._modules.items()}
    return twin


def _first_line(cause: Exception) -> str:
    """Of what megatron-bridge says in paragraphs, with marks."""
    return next((line.strip(" \u2717") for line in str(cause).splitlines() if line.strip()), type(cause).__name__)


def _unknown(what: str, why: str) -> UsageError:
    return UsageError("M579", what, owner=OWNER, why=why, fix="leave --megatron-to-hf-mode out, or set it to raw")
