"""The parts of a model that one rank holds: a ``GPTModel`` of megatron-core for each of its virtual pipeline stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from miles_megatron.models import mtp
from miles_megatron.models.norm import RMSNorm

if TYPE_CHECKING:
    from miles_megatron.architecture import Architecture


def build_chunks(
    architecture: Architecture,
    *,
    tp: int,
    pp: int,
    vpp: int,
    cp: int,
    ep: int,
    sequence_parallel: bool,
    dtype: torch.dtype,
    core_attention: type,
    recompute_granularity: str | None = None,
    recompute_method: str | None = None,
    recompute_num_layers: int | None = None,
    recompute_modules: list[str] | None = None,
) -> list[Any]:
    """This rank's parts, with weights still to be loaded. megatron-core's process groups must be there.

    Args:
        architecture: the model's constants.
        tp, pp, vpp, cp, ep: tensor-, pipeline-, virtual pipeline-, context- and expert-parallel sizes.
        sequence_parallel: tensor-parallel ranks share the tokens of norms and residuals.
        dtype: of parameters and computation.
        core_attention: module class of the attention proper.
        recompute_granularity, recompute_method, recompute_num_layers, recompute_modules: as megatron-core has them.
    """
    config = TransformerConfig(
        num_layers=architecture.layers,
        hidden_size=architecture.hidden,
        ffn_hidden_size=architecture.ffn,
        num_attention_heads=architecture.heads,
        num_query_groups=architecture.key_heads,
        kv_channels=architecture.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
        context_parallel_size=cp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=parallel_state.get_expert_tensor_parallel_world_size(),
        sequence_parallel=sequence_parallel,
        # Weights are loaded: what a random initialisation costs is for nothing.
        perform_initialization=False,
        persist_layer_norm=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        recompute_granularity=recompute_granularity,
        recompute_method=recompute_method,
        recompute_num_layers=recompute_num_layers,
        recompute_modules=recompute_modules,
        **_experts(architecture),
    )
    return [_chunk(architecture, config, core_attention, tp, vpp, number) for number in range(vpp)]


def add_mtp_layers(chunks: list[Any], architecture: Architecture, core_attention: type) -> None:
    """Give the last pipeline stage the architecture's layers of multi-token prediction, with weights still to be loaded."""
    last = chunks[-1]
    if not architecture.mtp_layers or not last.post_process:
        return
    stage, spec = getattr(last, "vp_stage", None), _layer(architecture, False, core_attention)
    numbers = range(len(last.decoder.layers) + 1, len(last.decoder.layers) + architecture.mtp_layers + 1)
    layers = torch.nn.ModuleList(mtp.MtpLayer(last.config, spec, number, stage) for number in numbers)
    _mark(layers)
    setattr(last, mtp.LAYERS, layers)


def _experts(architecture: Architecture) -> dict[str, Any]:
    if not architecture.experts:
        return {}
    return {
        "num_moe_experts": architecture.experts,
        "moe_router_topk": architecture.experts_per_token,
        "moe_ffn_hidden_size": architecture.expert_ffn,
        "moe_layer_freq": [int(each) for each in architecture.sparse],
        # A softmax over the chosen experts' logits is one over all, renormalised.
        "moe_router_pre_softmax": not architecture.renormalises,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": False,
    }


def _chunk(architecture: Architecture, config: TransformerConfig, core_attention: type, tp: int, vpp: int, number: int) -> GPTModel:
    stage = number if vpp > 1 else None
    first = parallel_state.is_pipeline_first_stage(ignore_virtual=stage is None, vp_stage=stage)
    last = parallel_state.is_pipeline_last_stage(ignore_virtual=stage is None, vp_stage=stage)
    start, count = get_transformer_layer_offset(config, vp_stage=stage), get_num_layers_to_build(config, vp_stage=stage)
    layers = [_layer(architecture, architecture.sparse[start + i], core_attention) for i in range(count)]
    model = GPTModel(
        config,
        TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm),
        vocab_size=architecture.padded_vocab(tp),
        max_sequence_length=architecture.max_positions,
        pre_process=first,
        post_process=last,
        parallel_output=True,
        share_embeddings_and_output_weights=architecture.tied,
        position_embedding_type="rope",
        rotary_base=architecture.rope_theta,  # type: ignore[arg-type]
        rope_scaling=architecture.rope_factor is not None,
        rope_scaling_factor=architecture.rope_factor or 8.0,
        seq_len_interpolation_factor=architecture.rope_interpolation,
        vp_stage=stage,
    )
    _mark(model)
    return model


def _mark(model: torch.nn.Module) -> None:
    """Say which parameters tensor-parallel ranks share, by which norms of gradients go: an initialisation would have said it."""
    kinds = {ColumnParallelLinear: 0, RowParallelLinear: 1, VocabParallelEmbedding: 0}
    for module in model.modules():
        dim = next((dim for kind, dim in kinds.items() if isinstance(module, kind)), None)
        shared = [] if dim is None else [(module.weight, dim)]
        if isinstance(module, ColumnParallelLinear):
            shared.append((module.bias, 0))
        for param, dim in shared:
            if param is not None and not getattr(param, "tensor_model_parallel", False):
                set_tensor_model_parallel_attributes(param, True, dim, 1)


def _layer(architecture: Architecture, sparse: bool, core_attention: type) -> ModuleSpec:
    """megatron-core's own layer, with this package's norms and attention."""
    spec = get_gpt_layer_local_spec(
        num_experts=architecture.experts if sparse else None,
        moe_grouped_gemm=False,
        qk_layernorm=architecture.qk_norm,
        normalization="RMSNorm",
    )
    parts: Any = spec.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention: Any = parts.self_attention.submodules
    attention.core_attention = core_attention
    if architecture.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return spec
