"""Over-sampling, partial rollouts, and functions that decide on rewards."""

from __future__ import annotations

from miles_core.config import DataOptions, RewardOptions, SamplingOptions
from miles_core.runtime.checks.report import Report


def check_sampling(report: Report) -> None:
    """Compare the options of sampling with each other and with the batch."""
    if not report.supervised:
        _over_sampling(report)
        _partial(report)
    _rewards(report)


def _over_sampling(report: Report) -> None:
    unit, prompts = report.peek(SamplingOptions).over_sampling_batch_size, report.peek(DataOptions).rollout_batch_size
    if unit is not None and prompts is not None and unit < prompts:
        said = report.said(SamplingOptions, "over_sampling_batch_size")
        other = report.said(DataOptions, "rollout_batch_size")
        why = f"a rollout needs {prompts} groups"
        report.error("M280", f"{said} is below {other}", why=why, fix=f"give {prompts} or more, or leave it out")


def _partial(report: Report) -> None:
    options = report.peek(SamplingOptions)
    prompts = report.peek(DataOptions).rollout_batch_size
    if options.partial_rollout:
        if options.over_sampling_batch_size is None and prompts is not None:
            report.derive(SamplingOptions, over_sampling_batch_size=prompts)
        if options.over_sampling_batch_size in (None, prompts) and not report.selection.filters:
            report.warn(
                "--partial-rollout has no effect: without a filter a rollout needs every prompt that goes out, so that nothing is "
                "left unfinished; give --over-sampling-batch-size above --rollout-batch-size"
            )
        return
    if options.mask_offpolicy_in_partial_rollout:
        said = report.said(SamplingOptions, "mask_offpolicy_in_partial_rollout")
        why = "only a partial rollout takes over tokens of earlier ones"
        report.error("M281", f"{said} needs --partial-rollout", why=why, fix="give --partial-rollout, or leave it out")
    if options.buffer_filter_path is not None and options.over_sampling_batch_size is None:
        said = report.said(SamplingOptions, "buffer_filter_path")
        report.warn(f"{said} has no effect: without --over-sampling-batch-size and --partial-rollout no group waits in the buffer")


def _rewards(report: Report) -> None:
    """Of the functions and options that make rewards of grades, one must not undo another."""
    options = report.peek(RewardOptions)
    convert = report.peek(SamplingOptions).custom_convert_samples_to_train_data_path is not None
    post = options.custom_reward_post_process_path is not None
    for name, chosen in (("custom_reward_post_process_path", post), ("overlong_buffer_ratio", options.overlong_buffer_ratio > 0)):
        if chosen and convert:
            said, other = (
                report.said(RewardOptions, name),
                report.said(SamplingOptions, "custom_convert_samples_to_train_data_path"),
            )
            _both(report, said, other, "that function makes the rewards of the rows itself")
    if post and options.overlong_buffer_ratio > 0:
        said, other = (report.said(RewardOptions, n) for n in ("overlong_buffer_ratio", "custom_reward_post_process_path"))
        _both(report, said, other, "that function takes the graded rewards and makes those that are trained on")


def _both(report: Report, said: str, other: str, why: str) -> None:
    report.error("M282", f"{said} does not go with {other}", why=why, fix="leave one of them out")
