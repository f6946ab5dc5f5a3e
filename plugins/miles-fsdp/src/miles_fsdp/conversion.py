"""Models whose parameters are not laid out as in their checkpoints, such as mixtures of experts with fused expert weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, revert_weight_conversion

from miles_core.errors import UsageError
from miles_fsdp import value_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from miles_core.hf import HfWeights

OWNER = "miles-fsdp"


def is_converted(model: nn.Module) -> bool:
    """Whether transformers converts this model's checkpoints as it loads them."""
    return any(not isinstance(c, PrefixChange) for c in get_model_conversion_mapping(model, add_legacy=False))


def converted_parameters(model: nn.Module, weights: HfWeights) -> Callable[[str, tuple[int, int]], torch.Tensor]:
    """A reader of rows of a parameter: rank 0 loads and converts the checkpoint in host memory and broadcasts each tensor.

    Collective: all ranks read the same parameters in the same order.

    Raises:
        UsageError: tensors are missing or unexpected (M342).
    """
    state: dict[str, torch.Tensor] = {}
    problem: list[str] = [""]
    if dist.get_rank() == 0:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            str(weights.directory), dtype="auto", local_files_only=True, output_loading_info=True, attn_implementation="eager"
        )
        state = dict(loaded.named_parameters())
        heads = _replaced_heads(loaded) if value_head.of(model) is not None else set()
        wrong = {kind: sorted(set(report[f"{kind}_keys"]) - heads) for kind in ("missing", "unexpected")}
        problem = [", ".join(f"{kind} {name}" for kind, names in wrong.items() for name in names[:5])]
    dist.broadcast_object_list(problem, src=0)
    if problem[0]:
        raise UsageError(
            "M342",
            f"the weights in {weights.directory} do not fit {type(model).__name__}: {problem[0]}",
            owner=OWNER,
            why="config and weights are of different models",
            fix="give a checkpoint whose config.json belongs to its weights",
        )
    shapes = {name: param.shape for name, param in model.named_parameters()}

    def read(name: str, rows: tuple[int, int]) -> torch.Tensor:
        whole = state.pop(name).detach().float() if state else torch.empty(shapes[name], dtype=torch.float32)
        dist.broadcast(whole, src=0)
        return whole[rows[0] : rows[1]].clone()

    return read


def _replaced_heads(loaded: nn.Module) -> set[str]:
    """Names of the vocabulary head, which a critic lacks, and of the value head, which the model that was loaded lacks."""
    head = loaded.get_output_embeddings()  # type: ignore[operator]
    names = {name for name, module in loaded.named_modules() if module is head}
    return set(value_head.NAMES) | {f"{name}.{part}" for name in names for part, _ in head.named_parameters()}


def to_checkpoint(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole parameters of one layer under the names, and in the layout, of the checkpoint."""
    return revert_weight_conversion(model, tensors)  # type: ignore[no-any-return,arg-type]
