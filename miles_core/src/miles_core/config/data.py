"""Prompts and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from miles_core.options import option


@dataclass(frozen=True)
class DataOptions:
    """Data"""

    num_rollout: int | None = option(None, flag="--num-rollout", help="Rollouts to run; each is a round of sampling and training.")
    num_epoch: int | None = option(
        None, flag="--num-epoch", help="Passes over the prompts; sets --num-rollout to (epochs x prompts) // --rollout-batch-size."
    )
    prompt_data: str | None = option(
        None,
        flag="--prompt-data",
        metavar="FILE[,FILE]",
        help="Prompts, JSON Lines or Parquet, several files with commas between. FILE@[a:b] takes rows a to b.",
    )
    input_key: str = option("input", flag="--input-key", help="Key of the prompt in a row: text, or a list of chat messages.")
    label_key: str | None = option(None, flag="--label-key", help="Key of the ground truth in a row.")
    metadata_key: str = option("metadata", flag="--metadata-key", help="Key of a row's further data, a mapping.")
    multimodal_keys: dict[str, Any] | None = option(
        None,
        flag="--multimodal-keys",
        metavar="JSON",
        help='Keys of a row\'s media by kind, as {"image": "images"}; <image> in the prompt is the place of each.',
    )
    tool_key: str = option("tools", flag="--tool-key", help="Key of a row's tool definitions for the chat template.")
    apply_chat_template: bool = option(
        False, flag="--apply-chat-template", help="Format prompts by the tokenizer's chat template; text becomes one user message."
    )
    apply_chat_template_kwargs: dict[str, Any] = option(
        {}, flag="--apply-chat-template-kwargs", metavar="JSON", help="Further arguments for the chat template."
    )
    rollout_batch_size: int | None = option(None, flag="--rollout-batch-size", help="Prompts in a rollout. Required.")
    n_samples_per_prompt: int = option(1, flag="--n-samples-per-prompt", help="Responses per prompt.")
    global_batch_size: int | None = option(
        None,
        flag="--global-batch-size",
        help="Samples in an optimizer step. Follows from --num-steps-per-rollout when that is set.",
    )
    num_steps_per_rollout: int | None = option(
        None,
        flag="--num-steps-per-rollout",
        help="Optimizer steps on one rollout. One when neither this nor --global-batch-size is set.",
    )
    use_dynamic_global_batch_size: bool = option(
        False,
        flag="--use-dynamic-global-batch-size",
        help="One optimizer step on all samples that a rollout has, however many that are.",
    )
    disable_rollout_trim_samples: bool = option(
        False,
        flag="--disable-rollout-trim-samples",
        help="Spread samples that fill no whole optimizer step over the others, where they are left out otherwise.",
    )
