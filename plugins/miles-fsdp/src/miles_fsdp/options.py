"""Options of the ``fsdp`` backend."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class FsdpOptions:
    """FSDP backend"""

    optimizer: str = option("adam", flag="--optimizer", choices=("adam", "sgd"), help="Optimizer: AdamW, or plain SGD.")
    cpu_offload: bool = option(
        False, flag="--fsdp-cpu-offload", help="Keep parameters, gradients and optimizer state in host memory and step there."
    )
    state_dict_cpu_offload: bool = option(
        True, flag="--fsdp-state-dict-cpu-offload", help="Move whole tensors to host memory as they are gathered for an HF export."
    )
    attn_implementation: str = option(
        "flash_attention_2",
        flag="--attn-implementation",
        choices=("flash_attention_2", "sdpa", "eager"),
        help="Attention kernels. The default falls back to PyTorch's own, with a notice, where flash-attn cannot be used.",
    )
    gradient_checkpointing: bool = option(
        False, flag="--gradient-checkpointing", help="Recompute each layer's activations in the backward pass to save memory."
    )
    context_parallel_size: int = option(
        1,
        flag="--context-parallel-size",
        help="Ranks that share the tokens of each micro-batch; in attention they share the heads, or pass keys and values round.",
    )
    replicate_size: int = option(
        1,
        flag="--dp-replicate-size",
        help="Groups of ranks that each hold all weights: within a group they are shared out, between groups gradients are summed.",
    )
    compile: bool = option(
        False,
        flag="--fsdp-compile",
        help="Compile decoder layers, log-probs and AdamW with torch.compile: faster steps after a minute or so of compiling.",
    )
    precision: str = option(
        "auto",
        flag="--fsdp-precision",
        choices=("auto", "fp32", "bf16"),
        help="Precision of the computation; auto is bf16 on GPUs and fp32 on CPUs. Weights and gradient sums are always fp32.",
    )
