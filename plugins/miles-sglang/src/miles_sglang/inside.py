"""What runs in SGLang's own processes: functions that ``--custom-weight-loader`` names, called on every rank of an engine.

Nothing of miles is imported here but this file, which needs torch alone.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

REPORT_VARIABLE = "SGLANG_MILES_REPORT"
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""What SGLang fuses, by the last word of a module's name: a checkpoint has the parts."""


def load(model: Any, named_tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Load buckets: each is a description of its tensors, and its bytes on this rank's GPU.

    Returns when the GPU has copied them, so that the sender may reuse the memory.
    """
    import torch

    for description, flat in named_tensors:
        model.load_weights(list(tensors(description, flat)))
    if any(flat.is_cuda for _, flat in named_tensors):
        torch.cuda.synchronize()


def tensors(description: str, flat: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a bucket as views of its bytes."""
    import torch

    for name, dtype, shape, offset, nbytes in json.loads(description):
        yield name, flat[offset : offset + nbytes].view(getattr(torch, dtype)).view(shape)


def report(model: Any, named_tensors: Sequence[tuple[str, Any]]) -> None:
    """Write dtype and SHA-256 of every parameter, by checkpoint name, to ``$SGLANG_MILES_REPORT``; the first rank does.

    The text in front of no tensor may be ``dtypes``: then nothing is hashed.
    """
    hashed = not any(name == "dtypes" for name, _ in named_tensors)
    rank, found = 0, {}
    for name, tensor in parameters(model):
        rank = _rank()
        if rank == 0:
            dtype = str(tensor.dtype).removeprefix("torch.")
            found[name] = [dtype, digest(tensor, dtype) if hashed else ""]
    if rank == 0:
        path = Path(os.environ[REPORT_VARIABLE])
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(path)


def digest(tensor: torch.Tensor, dtype: str) -> str:
    """As ``miles_core.weights.digest`` has it."""
    import torch

    state = hashlib.sha256(f"{dtype}{tuple(tensor.shape)}".encode())
    state.update(tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy().data)
    return state.hexdigest()


def parameters(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters under the names and in the layout of checkpoints, whole: joined from all ranks, fused ones taken apart.

    Collective over the ranks of an engine. A tied head comes under its own name, too.
    """
    modules = dict(model.named_modules())
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        parent, _, last = owner.rpartition(".")
        prefix = f"{parent}." if parent else ""
        if last in PARTS:
            for part, tensor in zip(PARTS[last], _split(module, parameter), strict=True):
                yield f"{prefix}{part}.{leaf}", tensor
        elif leaf in ("w13_weight", "w2_weight"):
            yield from _experts(owner, leaf, module, parameter)
        elif type(module).__name__ in ("VocabParallelEmbedding", "ParallelLMHead"):
            rows = getattr(module, "org_vocab_size", None)
            whole = _joined(parameter, 0)
            yield name, whole[:rows] if rows else whole
            if tied and name.endswith("embed_tokens.weight"):
                yield "lm_head.weight", whole[:rows] if rows else whole
        elif type(module).__name__ == "RowParallelLinear" and leaf in ("weight", "weight_scale_inv"):
            yield name, _joined(parameter, 1)
        elif type(module).__name__ == "ColumnParallelLinear":
            yield name, _joined(parameter, 0)
        else:
            yield name, parameter


def _split(module: Any, parameter: Any) -> list[torch.Tensor]:
    """The parts of a fused parameter, each joined from all ranks."""
    ranks = _ranks()
    if hasattr(module, "num_kv_heads"):
        size, value = module.head_size, getattr(module, "v_head_size", module.head_size)
        sizes = [module.num_heads * size, module.num_kv_heads * size, module.num_kv_heads * value]
        query, key, rest = parameter.split(_scaled(sizes, parameter), 0)
        # With fewer heads than ranks, neighbours hold the same keys and values.
        copies = getattr(module, "num_kv_head_replicas", 1)
        return [_joined(query, 0), _joined(key, 0, copies), _joined(rest, 0, copies)]
    return [_joined(part, 0) for part in parameter.split(_scaled([size // ranks for size in module.output_sizes], parameter), 0)]


def _scaled(sizes: list[int], parameter: Any) -> list[int]:
    """Rows of the parts of a parameter; one that has a row for every block of another's has fewer."""
    return [size * parameter.shape[0] // sum(sizes) for size in sizes]


def _experts(owner: str, leaf: str, module: Any, parameter: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Experts that a mixture of experts holds in one parameter, ``[experts, out, in]``."""
    if leaf == "w2_weight":
        whole = _joined(parameter, 2)
        for number, expert in enumerate(whole):
            yield f"{owner}.{number}.down_proj.weight", expert
        return
    gate, up = parameter.chunk(2, 1)
    wholes = (_joined(gate, 1), _joined(up, 1))
    for number in range(parameter.shape[0]):
        for part, whole in zip(PARTS["gate_up_proj"], wholes, strict=True):
            yield f"{owner}.{number}.{part}.weight", whole[number]


def _ranks() -> int:
    return int(_group().world_size) if _group() is not None else 1


def _rank() -> int:
    return int(_group().rank_in_group) if _group() is not None else 0


def _group() -> Any:
    """The tensor-parallel group of this server; None where there is none."""
    try:
        return importlib.import_module("sglang.srt.distributed").get_tp_group()
    except ImportError:
        return None


def _joined(part: torch.Tensor, dim: int, copies: int = 1) -> torch.Tensor:
    """A tensor that ranks hold in slices along ``dim``, each slice on ``copies`` ranks in a row."""
    group = _group()
    if group is None or group.world_size == 1:
        return part
    import torch

    gathered = group.all_gather(part.contiguous(), dim=0).chunk(group.world_size, 0)
    return torch.cat(list(gathered[::copies]), dim)
