"""Which tensors of a checkpoint each parameter of megatron-core's is made of, and how ranks share it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron.core import parallel_state
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from miles_core.errors import UsageError
from miles_megatron import tensors, value_head
from miles_megatron.architecture import OWNER
from miles_megatron.mapping.layouts import COLUMNS, GATED, QKV, VOCABULARY, WHOLE, Layout
from miles_megatron.models.mtp import LAYERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from miles_megatron.architecture import Architecture

OUTER: dict[str, tuple[Layout, tuple[str, ...]]] = {
    "embedding.word_embeddings.weight": (VOCABULARY, ("model.embed_tokens.weight",)),
    "decoder.final_layernorm.weight": (WHOLE, ("model.norm.weight",)),
    "output_layer.weight": (VOCABULARY, ("lm_head.weight",)),
    **{name: (WHOLE, (name,)) for name in value_head.NAMES},
}
"""Layout and checkpoint names of the parameters outside the layers."""
QKV_NAMES = ("q_proj", "k_proj", "v_proj")
LAYER: dict[str, tuple[Layout, tuple[str, ...]]] = {
    "input_layernorm.weight": (WHOLE, ("input_layernorm.weight",)),
    "self_attention.linear_qkv.weight": (QKV, tuple(f"self_attn.{name}.weight" for name in QKV_NAMES)),
    "self_attention.linear_qkv.bias": (QKV, tuple(f"self_attn.{name}.bias" for name in QKV_NAMES)),
    "self_attention.q_layernorm.weight": (WHOLE, ("self_attn.q_norm.weight",)),
    "self_attention.k_layernorm.weight": (WHOLE, ("self_attn.k_norm.weight",)),
    "self_attention.linear_proj.weight": (COLUMNS, ("self_attn.o_proj.weight",)),
    "pre_mlp_layernorm.weight": (WHOLE, ("post_attention_layernorm.weight",)),
    "mlp.linear_fc1.weight": (GATED, ("mlp.gate_proj.weight", "mlp.up_proj.weight")),
    "mlp.linear_fc2.weight": (COLUMNS, ("mlp.down_proj.weight",)),
    "mlp.router.weight": (WHOLE, ("mlp.gate.weight",)),
}
"""The same of those inside a layer, after its number."""
EXPERT: dict[str, tuple[Layout, tuple[str, ...]]] = {
    "linear_fc1.weight": (GATED, ("gate_proj.weight", "up_proj.weight")),
    "linear_fc2.weight": (COLUMNS, ("down_proj.weight",)),
}
"""The same of those of an expert."""
MTP: dict[str, tuple[Layout, tuple[str, ...]]] = {
    **{name: (WHOLE, (name,)) for name in ("token_layernorm.weight", "hidden_layernorm.weight", "final_layernorm.weight")},
    "input_proj.weight": (WHOLE, ("input_proj.weight",)),
    **{f"layer.{name}": place for name, place in LAYER.items()},
}
"""The same of those of a layer of multi-token prediction."""
_MTP = re.compile(rf"{LAYERS}\.(\d+)\.(.+)")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Entry:
    """A parameter of this rank.

    Attributes:
        name: of the parameter, in its chunk.
        names: of the checkpoint's tensors that it is made of; of an expert, with ``{}`` for its number.
        layout: how tensor-parallel ranks, of an expert its own ones, share it.
        expert: its number among those of this rank; None for what is no expert's.
        param: the parameter itself.
    """

    name: str
    names: tuple[str, ...]
    layout: Layout
    expert: int | None
    param: torch.nn.Parameter

    def hf_names(self, rank: int, local: int) -> tuple[str, ...]:
        """Names in the checkpoint, for the expert-parallel rank ``rank`` of ranks with ``local`` experts each."""
        if self.expert is None:
            return self.names
        return tuple(name.format(rank * local + self.expert) for name in self.names)


def entries(chunks: Sequence[Any], architecture: Architecture) -> list[Entry]:
    """Every parameter of this rank's chunks, in their order.

    Raises:
        UsageError: there is one that no checkpoint of the family has (M342).
    """
    found = []
    for chunk in chunks:
        offset = get_transformer_layer_offset(chunk.config, vp_stage=getattr(chunk, "vp_stage", None))
        for name, param in chunk.named_parameters():
            layout, names, expert = _place(name, offset, architecture)
            found.append(Entry(name, names, layout, expert, param))
    return found


def _place(name: str, offset: int, architecture: Architecture) -> tuple[Layout, tuple[str, ...], int | None]:
    if name == "output_layer.weight" and architecture.tied:
        # The last pipeline stage's own copy of the embedding.
        return VOCABULARY, ("model.embed_tokens.weight",), None
    if name in OUTER:
        return *OUTER[name], None
    ahead = _MTP.fullmatch(name)
    if ahead is not None and ahead[2] in MTP:
        layout, names = MTP[ahead[2]]
        return layout, tuple(f"{tensors.MTP}{ahead[1]}.{each}" for each in names), None
    layer = _LAYER.fullmatch(name)
    if layer is not None:
        prefix, rest = f"model.layers.{int(layer[1]) + offset}.", layer[2]
        if rest in LAYER:
            layout, names = LAYER[rest]
            return layout, tuple(prefix + each for each in names), None
        expert = _EXPERT.fullmatch(rest)
        if expert is not None and expert[2] in EXPERT:
            layout, names = EXPERT[expert[2]]
            return layout, tuple(f"{prefix}mlp.experts.{{}}.{each}" for each in names), int(expert[1])
    raise UsageError(
        "M342",
        f"the model has a parameter {name}, which checkpoints of {architecture.name} models do not have",
        owner=OWNER,
        fix="build the model of --custom-model-provider-path from the parts of the family, or name another by --model-name",
    )


def local_experts(architecture: Architecture) -> int:
    """Experts of each expert-parallel rank."""
    return architecture.experts // parallel_state.get_expert_model_parallel_world_size() if architecture.experts else 0
