"""What ``--custom-model-provider-path`` may name, and what it may not: models of the sizes of ``llama``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig
from miles_megatron.attention import PackedAttention


def llama(
    pre_process: bool,
    post_process: bool,
    vp_stage: int | None = None,
    *,
    core_attention: type | None = PackedAttention,
    base: int = 10_000,
) -> GPTModel:
    """The model itself, with megatron-core's own norms."""
    config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_query_groups=2,
        normalization="RMSNorm",
        layernorm_epsilon=1e-6,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        perform_initialization=False,
        persist_layer_norm=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
    )
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    if core_attention is not None:
        layer.submodules.self_attention.submodules.core_attention = core_attention
    return GPTModel(
        config,
        layer,
        vocab_size=256,
        max_sequence_length=512,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=base,
        vp_stage=vp_stage,
    )


def other_angles(pre_process: bool, post_process: bool, vp_stage: int | None = None) -> GPTModel:
    """A model that is not the checkpoint's."""
    return llama(pre_process, post_process, vp_stage, base=100)


def own_attention(pre_process: bool, post_process: bool, vp_stage: int | None = None) -> GPTModel:
    """A model whose attention computes no packed rows."""
    return llama(pre_process, post_process, vp_stage, core_attention=None)


def no_model(pre_process: bool, post_process: bool, vp_stage: int | None = None) -> torch.nn.Linear:
    """Something else."""
    return torch.nn.Linear(2, 2)
