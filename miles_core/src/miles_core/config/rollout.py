"""Generation."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class RolloutOptions:
    """Rollout"""

    hf_checkpoint: str | None = option(
        None, flag="--hf-checkpoint", metavar="DIR", help="HF directory with the config, weights and tokenizer to start from."
    )
    rollout_temperature: float = option(
        1.0, flag="--rollout-temperature", help="Sampling temperature; it divides the logits in training too."
    )
    rollout_top_p: float = option(1.0, flag="--rollout-top-p", help="Nucleus sampling threshold; 1 is off.")
    rollout_top_k: int = option(-1, flag="--rollout-top-k", help="Sample among the k likeliest tokens; -1 is off.")
    rollout_max_context_len: int | None = option(
        None, flag="--rollout-max-context-len", help="Most tokens of prompt and response together."
    )
    rollout_max_prompt_len: int | None = option(
        None, flag="--rollout-max-prompt-len", help="Most tokens of a prompt; longer ones are dropped from the data, and counted."
    )
    rollout_max_response_len: int | None = option(None, flag="--rollout-max-response-len", help="Most tokens of a response.")
    rollout_skip_special_tokens: bool = option(
        False, flag="--rollout-skip-special-tokens", help="Leave special tokens out of the response's text (never out of its ids)."
    )
    rollout_stop: list[str] | None = option(None, flag="--rollout-stop", help="Texts that end a response; they stay in it.")
    rollout_stop_token_ids: list[int] | None = option(
        None, flag="--rollout-stop-token-ids", help="Token ids that end a response, besides the end-of-sequence token."
    )
    rollout_shuffle: bool = option(False, flag="--rollout-shuffle", help="Shuffle the prompts anew every epoch.")
    rollout_seed: int = option(42, flag="--rollout-seed", help="Seed of shuffling and sampling.")
    rollout_request_timeout: float = option(
        600.0,
        flag="--rollout-request-timeout",
        help="Seconds that an engine may take over one batch of requests without any answer.",
    )
    update_weight_buffer_size: int = option(
        536870912, flag="--update-weight-buffer-size", help="Size of one bucket of published weights, in bytes."
    )
    check_weight_update_equal: bool = option(
        False,
        flag="--check-weight-update-equal",
        help="After every publish compare each engine's weights with the trainer's, by SHA-256.",
    )
    logprob_diff_warn: float = option(
        0.05,
        flag="--logprob-diff-warn",
        help="Warn when the mean absolute difference of rollout and training log-probs exceeds this.",
    )
    logprob_diff_limit: float = option(
        1.0,
        flag="--logprob-diff-limit",
        help="Stop the run when the mean absolute difference of rollout and training log-probs exceeds this.",
    )
    custom_generate_function_path: str | None = option(
        None,
        flag="--custom-generate-function-path",
        metavar="NAME|PATH",
        signature="generate",
        help="Function that makes one sample's response, in several turns and with tools if it likes, in place of one request.",
    )
    rollout_function_path: str | None = option(
        None,
        flag="--rollout-function-path",
        metavar="PATH",
        signature="rollout_function",
        help="Function that makes a rollout's groups in place of core: which prompts, how often, and what is kept.",
    )
    custom_rollout_log_function_path: str | None = option(
        None,
        flag="--custom-rollout-log-function-path",
        metavar="PATH",
        signature="rollout_log",
        help="Function that sees every rollout's samples and metrics; when it answers true, core logs no metrics of its own.",
    )
