"""Options of the ``transformers`` engine."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class TransformersOptions:
    """Transformers engine"""

    max_batch: int = option(256, flag="--transformers-max-batch", help="Most responses that one engine decodes at a time.")
    dtype: str = option(
        "auto",
        flag="--transformers-dtype",
        choices=("auto", "fp32", "bf16"),
        help="Precision of weights and cache; auto is bf16 on a GPU and fp32 on a CPU.",
    )
    attn_implementation: str = option(
        "sdpa",
        flag="--transformers-attn-implementation",
        choices=("sdpa", "eager"),
        help="Attention kernels. A model with soft-capped attention always runs eager.",
    )
    kv_cache_tokens: int = option(
        0,
        flag="--transformers-kv-cache-tokens",
        help="Size of the KV cache in tokens, all responses together; 0 takes --transformers-kv-cache-share of the free memory.",
    )
    kv_cache_share: float = option(
        0.4,
        flag="--transformers-kv-cache-share",
        help="Share of the memory that is free after loading the weights, for the KV cache; on a CPU at most 1 GiB.",
    )
    prefill_tokens: int = option(
        8192, flag="--transformers-prefill-tokens", help="Most prompt tokens, with padding, in one forward pass."
    )
    cuda_graphs: bool = option(
        True, flag="--transformers-cuda-graphs", help="Run decoding steps on a GPU as CUDA graphs: faster for all but large models."
    )
    threads: int = option(0, flag="--transformers-threads", help="CPU threads of the decoder; 0 leaves PyTorch's choice.")
