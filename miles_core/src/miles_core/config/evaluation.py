"""Evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluation"""

    eval_interval: int | None = option(None, flag="--eval-interval", help="Rollouts between evaluations; none when not given.")
    eval_prompt_data: list[str] | None = option(
        None, flag="--eval-prompt-data", metavar="NAME FILE", help="Evaluation sets: NAME FILE [NAME FILE ...]."
    )
    eval_config: str | None = option(
        None, flag="--eval-config", metavar="FILE", help="YAML file of evaluation sets, each with its own sampling settings."
    )
    skip_eval_before_train: bool = option(False, flag="--skip-eval-before-train", help="Do not evaluate before the first rollout.")
    n_samples_per_eval_prompt: int = option(1, flag="--n-samples-per-eval-prompt", help="Responses per evaluation prompt.")
    eval_temperature: float | None = option(
        None, flag="--eval-temperature", help="Sampling temperature; 0 is greedy. --rollout-temperature when not given."
    )
    eval_top_p: float | None = option(None, flag="--eval-top-p", help="--rollout-top-p when not given.")
    eval_top_k: int | None = option(None, flag="--eval-top-k", help="--rollout-top-k when not given.")
    eval_max_response_len: int | None = option(
        None, flag="--eval-max-response-len", help="--rollout-max-response-len when not given."
    )
    eval_max_prompt_len: int | None = option(
        None, flag="--eval-max-prompt-len", help="Longer evaluation prompts are dropped, and counted."
    )
    eval_min_new_tokens: int | None = option(None, flag="--eval-min-new-tokens", help="Fewest tokens of an evaluation response.")
    eval_max_context_len: int | None = option(
        None,
        flag="--eval-max-context-len",
        help="Most tokens of an evaluation's prompt and response together. --rollout-max-context-len when not given.",
    )
    eval_function_path: str | None = option(
        None,
        flag="--eval-function-path",
        metavar="PATH",
        signature="eval_function",
        help="Function that evaluates in place of core.",
    )
    custom_eval_rollout_log_function_path: str | None = option(
        None,
        flag="--custom-eval-rollout-log-function-path",
        metavar="PATH",
        signature="eval_rollout_log",
        help="Function that sees every evaluation's samples and metrics; when it answers true, core logs no metrics of its own.",
    )
