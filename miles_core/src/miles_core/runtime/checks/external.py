"""``--rollout-buffer-url`` and what does not go with it."""

from __future__ import annotations

from urllib.parse import urlsplit

from miles_core.config import (
    DataOptions,
    DebugOptions,
    ExternalOptions,
    LoopOptions,
    PluginOptions,
    RewardOptions,
    RolloutOptions,
    SamplingOptions,
)
from miles_core.options.value import Source
from miles_core.runtime.checks.report import Report
from miles_core.runtime.plan import PlacementPlan

COMPANIONS = ("fetch_trajectory_retry_times", "min_batch_collection_ratio", "rollout_buffer_token")
IDLE = ("over_sampling_batch_size", "partial_rollout", "mask_offpolicy_in_partial_rollout", "buffer_filter_path")


def check_external(report: Report, placement: PlacementPlan | None) -> None:
    """Check the address, the token, and what generates in the buffer's place. The placement is None where it is wrong already."""
    options = report.peek(ExternalOptions)
    token = report.config.value(ExternalOptions, "rollout_buffer_token")
    if token.source in (Source.COMMAND_LINE, Source.FILE):
        fix = "put it in the environment variable MILES_ROLLOUT_BUFFER_TOKEN"
        why = "others can read command lines and files"
        report.error("M346", f"--rollout-buffer-token is given in {token.place}", why=why, fix=fix)
    if options.rollout_buffer_url is None:
        for name in COMPANIONS:
            value = report.config.value(ExternalOptions, name)
            # The buffer's server and agents read the same variable, so that it may be set for their sake.
            if report.chosen(ExternalOptions, name) and not (name == COMPANIONS[2] and value.source is Source.ENVIRONMENT):
                flag = f"--{name.replace('_', '-')}"
                report.warn(f"{flag} ({value.place}) has no effect: --rollout-buffer-url is not given")
        return
    _check_url(report, options.rollout_buffer_url)
    _check_others(report)
    if placement is not None and placement.offload_rollout:
        _refuse(report, "--offload-rollout", "agents may call the engines while the trainer works", "add --no-offload-rollout")
    if options.min_batch_collection_ratio < 1 and not report.peek(DataOptions).use_dynamic_global_batch_size:
        said = report.said(ExternalOptions, "min_batch_collection_ratio")
        why = "a rollout with fewer groups does not fill --global-batch-size"
        report.error("M348", f"{said} needs --use-dynamic-global-batch-size", why=why, fix="set it, or leave the ratio at 1")
    why = "--rollout-buffer-url takes the place of what would use it"
    for name in IDLE:
        if report.chosen(SamplingOptions, name):
            report.warn(f"{report.said(SamplingOptions, name)} has no effect: {why}")
    if not report.evaluates:
        for group, name in ((PluginOptions, "rm_type"), (RewardOptions, "custom_rm_path")):
            if report.chosen(group, name):
                report.warn(f"{report.said(group, name)} has no effect: agents send rewards, and the run does not evaluate")


def _check_url(report: Report, url: str) -> None:
    said = report.said(ExternalOptions, "rollout_buffer_url")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        good = good and not parts.query and not parts.fragment
        secret = parts.password is not None
    except ValueError:
        good, secret = False, False
    if not good:
        why = "it is no http:// or https:// address"
        report.error("M346", f"{said} cannot be used", why=why, fix="give http://HOST:PORT")
    elif secret:
        fix = "take it out, and put a token in the environment variable MILES_ROLLOUT_BUFFER_TOKEN"
        report.error("M346", "--rollout-buffer-url holds a password", why="the run's folder keeps the options", fix=fix)


def _check_others(report: Report) -> None:
    if report.supervised:
        _refuse(report, report.said(PluginOptions, "loss_type"), "its responses come from the data", "leave one of them out")
    if report.peek(LoopOptions).loop != "sync":
        why = "what was taken from the buffer is told apart from what was saved by rollouts in turn"
        _refuse(report, report.said(LoopOptions, "loop"), why, "take --loop sync")
    for group, name, why in (
        (RolloutOptions, "rollout_function_path", "that function makes rollouts itself"),
        (RolloutOptions, "custom_generate_function_path", "agents generate"),
        (DataOptions, "multimodal_keys", "trajectories have token ids alone"),
        (DebugOptions, "load_debug_rollout_data", "rollouts come from files"),
        (DebugOptions, "debug_train_only", "there is no engine that agents could call"),
    ):
        if getattr(report.peek(group), name) not in (None, False):
            _refuse(report, report.said(group, name), why, "leave one of them out")


def _refuse(report: Report, other: str, why: str, fix: str) -> None:
    said = report.said(ExternalOptions, "rollout_buffer_url")
    report.error("M348", f"{said} does not go with {other}", why=why, fix=fix)
