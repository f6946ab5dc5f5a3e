"""Training."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class TrainingOptions:
    """Training"""

    lr: float = option(1e-6, flag="--lr", help="Learning rate.")
    min_lr: float = option(0.0, flag="--min-lr", help="Learning rate at the end of the decay.")
    lr_decay_style: str = option(
        "constant",
        flag="--lr-decay-style",
        choices=("constant", "linear", "cosine", "inverse-square-root"),
        help="Shape of the decay.",
    )
    lr_decay_iters: int | None = option(
        None, flag="--lr-decay-iters", help="Optimizer steps of the decay; the whole run when not given."
    )
    lr_warmup_iters: int = option(0, flag="--lr-warmup-iters", help="Optimizer steps of linear warm-up from 0.")
    lr_warmup_fraction: float | None = option(
        None, flag="--lr-warmup-fraction", help="Warm-up as a share of the decay's steps; takes the place of --lr-warmup-iters."
    )
    weight_decay: float = option(0.0, flag="--weight-decay", help="Decoupled weight decay.")
    adam_beta1: float = option(0.9, flag="--adam-beta1", help="Adam's first-moment decay.")
    adam_beta2: float = option(0.95, flag="--adam-beta2", help="Adam's second-moment decay.")
    adam_eps: float = option(1e-8, flag="--adam-eps", help="Adam's epsilon.")
    clip_grad: float = option(1.0, flag="--clip-grad", help="Clip the gradient's norm to this; 0 is off.")
    seed: int = option(1234, flag="--seed", help="Seed of training.")
    qkv_format: str = option(
        "thd",
        flag="--qkv-format",
        choices=("thd", "bshd"),
        help="thd packs samples into one row without padding between them; bshd pads each to the longest.",
    )
    micro_batch_size: int = option(1, flag="--micro-batch-size", help="Samples in a micro-batch, per GPU.")
    use_dynamic_batch_size: bool = option(
        False, flag="--use-dynamic-batch-size", help="Fill micro-batches by tokens, up to --max-tokens-per-gpu, not by samples."
    )
    max_tokens_per_gpu: int | None = option(
        None,
        flag="--max-tokens-per-gpu",
        help="Most tokens of prompt and response in a micro-batch, with --use-dynamic-batch-size.",
    )
    log_probs_max_tokens_per_gpu: int | None = option(
        None,
        flag="--log-probs-max-tokens-per-gpu",
        help="The same cap for passes without gradients; --max-tokens-per-gpu when not given.",
    )
    recompute_loss_function: bool = option(
        False,
        flag="--recompute-loss-function",
        help="Compute the loss anew in the backward pass instead of keeping what it needs, to save memory.",
    )
    log_probs_chunk_size: int = option(
        -1, flag="--log-probs-chunk-size", help="Rows of logits to turn into log-probs at a time; -1 takes all."
    )
    data_pad_size_multiplier: int = option(
        128, flag="--data-pad-size-multiplier", help="Pad micro-batches to a multiple of this many tokens (GPU only)."
    )
    true_on_policy_mode: bool = option(
        False,
        flag="--true-on-policy-mode",
        help="Compute log-probs in engine and trainer alike to the last bit, and stop when they differ. On CPUs, in fp32.",
    )
    balance_data: bool = option(
        False, flag="--balance-data", help="Give data-parallel ranks about equal numbers of tokens (Karmarkar-Karp)."
    )
