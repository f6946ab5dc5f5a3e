"""Options that the user set and that mean nothing for this run."""

from __future__ import annotations

from collections.abc import Iterable

from miles_core.config import (
    AlgorithmOptions,
    CheckpointOptions,
    ClusterOptions,
    EvaluationOptions,
    LoggingOptions,
    PluginOptions,
    RewardOptions,
    RolloutOptions,
    SamplingOptions,
    TrainingOptions,
)
from miles_core.runtime.checks.report import Report

GENERATION = (
    *("rollout_temperature", "rollout_top_p", "rollout_top_k", "rollout_skip_special_tokens", "rollout_stop"),
    *("rollout_stop_token_ids", "rollout_request_timeout", "update_weight_buffer_size", "check_weight_update_equal"),
    *("logprob_diff_warn", "logprob_diff_limit"),
)
POLICY = (
    *("normalize_advantages", "disable_compute_advantages_and_returns", "use_rollout_logprobs", "use_rollout_entropy"),
    *("keep_old_actor", "ref_update_interval", "ref_load"),
)
ROLLOUTS = (
    *("over_sampling_batch_size", "partial_rollout", "mask_offpolicy_in_partial_rollout", "buffer_filter_path"),
    *("rollout_sample_filter_path", "rollout_all_samples_process_path"),
)
ENGINES = (
    "rollout_engine_port",
    "rollout_num_gpus",
    "rollout_num_gpus_per_engine",
    "colocate",
    "offload",
    "offload_train",
    "offload_rollout",
)


def check_relevance(report: Report) -> None:
    """Warn, by name, of options that nothing will use."""
    if report.supervised:
        _supervised(report)
    elif report.peek(RolloutOptions).rollout_function_path is not None:
        why = "--rollout-function-path takes the place of what would use it"
        _warn(report, SamplingOptions, ROLLOUTS[:4], why)
        _warn(report, PluginOptions, ["dynamic_sampling_filter_path"], why)
    if not report.evaluates:
        names = [name for name in EvaluationOptions.__dataclass_fields__ if name != "eval_interval"]
        _warn(report, EvaluationOptions, names, "--eval-interval is not given, so the run does not evaluate")
    training = report.peek(TrainingOptions)
    if training.use_dynamic_batch_size:
        _warn(report, TrainingOptions, ["micro_batch_size"], "--use-dynamic-batch-size fills micro-batches by tokens")
    else:
        names = ["max_tokens_per_gpu", "log_probs_max_tokens_per_gpu"]
        _warn(report, TrainingOptions, names, "--use-dynamic-batch-size is not given")
    if report.peek(ClusterOptions).device == "cpu":
        _warn(report, TrainingOptions, ["data_pad_size_multiplier"], "micro-batches are not padded on a CPU")
    if training.lr_warmup_fraction is not None:
        _warn(report, TrainingOptions, ["lr_warmup_iters"], "--lr-warmup-fraction takes its place")
    if training.lr_decay_style == "constant":
        _warn(report, TrainingOptions, ["min_lr", "lr_decay_iters"], "--lr-decay-style is constant")
    if not report.peek(RewardOptions).overlong_buffer_ratio:
        _warn(report, RewardOptions, ["overlong_penalty_factor"], "--overlong-buffer-ratio is not given")
    if report.peek(RewardOptions).custom_rm_path is not None:
        _warn(report, PluginOptions, ["rm_type"], "--custom-rm-path takes its place")
    elif (reward := report.selection.reward) is not None and "group" not in reward.capabilities:
        _warn(report, RewardOptions, ["group_rm"], f"the reward {reward.name} grades samples one by one")
    logging = report.peek(LoggingOptions)
    if not (logging.log_passrate or logging.log_correct_samples):
        _warn(report, LoggingOptions, ["log_correct_threshold"], "neither --log-passrate nor --log-correct-samples is given")
    if report.peek(CheckpointOptions).save is None:
        _warn(report, CheckpointOptions, ["save_total_limit", "async_save"], "--save is not given")


def _supervised(report: Report) -> None:
    """A supervised run has no advantage; without evaluation it has no engine and no reward either."""
    selection = report.selection
    loss = selection.loss.name if selection.loss is not None else ""
    why = f"--loss-type {loss} trains on responses from the data"
    _warn(report, PluginOptions, ["advantage_estimator", "dynamic_sampling_filter_path"], why)
    _warn(report, AlgorithmOptions, POLICY, why)
    _warn(report, SamplingOptions, ROLLOUTS, why)
    _warn(report, RolloutOptions, ["rollout_function_path"], why)
    _warn(report, LoggingOptions, ["log_multi_turn", "log_correct_samples"], why)
    _warn(report, RewardOptions, ["custom_reward_post_process_path", "overlong_buffer_ratio"], why)
    idle = [selection.advantage]
    if not report.generates:
        _warn(report, PluginOptions, ["rm_type", "engine"], f"{why}, and the run does not evaluate")
        _warn(report, RewardOptions, RewardOptions.__dataclass_fields__, why)
        _warn(report, LoggingOptions, ["log_passrate", "log_correct_threshold", "log_reward_category"], why)
        _warn(report, RolloutOptions, GENERATION, why)
        _warn(report, ClusterOptions, ENGINES, why)
        idle += [selection.reward, selection.engine]
    used = {group for plugin in selection.loaded if plugin.ref not in idle for group in plugin.options}
    unused = {group for plugin in selection.loaded if plugin.ref in idle for group in plugin.options} - used
    for group in unused:
        _warn(report, group, group.__dataclass_fields__, why)  # type: ignore[attr-defined]


def _warn(report: Report, group: type, names: Iterable[str], why: str) -> None:
    for option, value in report.config.items():
        if option.group is group and option.field in names and report.chosen(group, option.field) and value.value != option.default:
            report.warn(f"{option.flag} ({value.place}) has no effect: {why}")
