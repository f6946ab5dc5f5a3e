"""Options of the ``megatron`` backend. Where Megatron has an option of the meaning, it has Megatron's name."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class MegatronOptions:
    """Megatron backend"""

    tensor_model_parallel_size: int = option(
        1, flag="--tensor-model-parallel-size", help="Ranks that share every layer's heads, hidden units and vocabulary."
    )
    sequence_parallel: bool = option(
        False, flag="--sequence-parallel", help="Tensor-parallel ranks also share the tokens of norms and residuals."
    )
    pipeline_model_parallel_size: int = option(
        1, flag="--pipeline-model-parallel-size", help="Stages that the layers are divided into, one after another."
    )
    virtual_stages: int = option(
        1,
        flag="--num-virtual-stages-per-pipeline-rank",
        help="Parts of the model that each pipeline rank holds, interleaved, so that pipelines fill sooner.",
    )
    context_parallel_size: int = option(
        1, flag="--context-parallel-size", help="Ranks that share the tokens of each micro-batch, and the heads in attention."
    )
    expert_model_parallel_size: int = option(
        1, flag="--expert-model-parallel-size", help="Ranks that share the experts of a mixture of experts."
    )
    expert_tensor_parallel_size: int | None = option(
        None, flag="--expert-tensor-parallel-size", help="Ranks that share each expert; as many as a layer when not given."
    )
    use_distributed_optimizer: bool = option(
        True, flag="--use-distributed-optimizer", help="Data-parallel ranks share Adam's state and step."
    )
    overlap_grad_reduce: bool = option(
        False, flag="--overlap-grad-reduce", help="Sum gradients over ranks while the backward pass still runs."
    )
    overlap_param_gather: bool = option(
        False,
        flag="--overlap-param-gather",
        help="Gather stepped parameters while the next forward pass runs; with --overlap-grad-reduce.",
    )
    precision: str = option(
        "auto",
        flag="--megatron-precision",
        choices=("auto", "fp32", "bf16"),
        help="Precision of parameters and computation; auto is bf16 on GPUs. Master weights and gradient sums are always fp32.",
    )
    optimizer: str = option("adam", flag="--optimizer", choices=("adam", "sgd"), help="Optimizer: AdamW, or SGD.")
    recompute_granularity: str | None = option(
        None,
        flag="--recompute-granularity",
        choices=("full", "selective"),
        help="What the backward pass recomputes to save memory: whole layers, or the parts that --recompute-modules names.",
    )
    recompute_method: str | None = option(
        None,
        flag="--recompute-method",
        choices=("uniform", "block"),
        help="Full recomputation: of all layers, keeping the input of every --recompute-num-layers, or of so many only.",
    )
    recompute_num_layers: int | None = option(
        None, flag="--recompute-num-layers", help="Layers of --recompute-method; 1 when not given."
    )
    recompute_modules: list[str] = option(
        [], flag="--recompute-modules", help="Selective recomputation: core_attn, mlp, moe, moe_act, layernorm; core_attn if empty."
    )
    make_vocab_size_divisible_by: int = option(
        128, flag="--make-vocab-size-divisible-by", help="Pad the vocabulary to a multiple of this times the tensor-parallel size."
    )
    train_memory_margin_bytes: int = option(
        1 << 30, flag="--train-memory-margin-bytes", help="Bytes of the GPU that training never allocates; 0 is off."
    )
    disable_weights_backuper: bool = option(
        False,
        flag="--disable-weights-backuper",
        help="Keep copies of the weights (reference, old actor) in GPU memory and none in pinned host memory.",
    )
    megatron_to_hf_mode: str = option(
        "raw",
        flag="--megatron-to-hf-mode",
        choices=("raw", "bridge"),
        help="Who converts weights from and to HF: this package's tables, or the package megatron-bridge.",
    )
    model_name: str | None = option(
        None, flag="--model-name", help="Architecture whose table of weights to use; that of the HF config when not given."
    )
    custom_model_provider_path: str | None = option(
        None,
        flag="--custom-model-provider-path",
        signature="model_provider",
        help="Function (pre_process, post_process[, vp_stage]) that builds each part of the model in place of this package.",
    )
    enable_mtp_training: bool = option(
        False, flag="--enable-mtp-training", help="Train the multi-token-prediction layers along with the policy."
    )
    mtp_num_layers: int | None = option(
        None,
        flag="--mtp-num-layers",
        help="Multi-token-prediction layers to train, from the first on; all when not given.",
    )
    mtp_loss_scaling_factor: float = option(
        0.2, flag="--mtp-loss-scaling-factor", help="Weight of the multi-token-prediction loss."
    )
    compile: bool = option(
        False,
        flag="--megatron-compile",
        help="Compile norms, rotary positions, activations, log-probs and AdamW with torch.compile: faster steps after a minute.",
    )
    check_log_probs: bool = option(
        True,
        flag="--check-hf-log-probs",
        help="Before the first step, compare log-probs of a few tokens with those that transformers computes from the checkpoint.",
    )
