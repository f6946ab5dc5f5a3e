"""Options one by one, and pairs of which one needs the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miles_core.config import (
    AlgorithmOptions,
    CheckpointOptions,
    ClusterOptions,
    CriticOptions,
    DataOptions,
    DebugOptions,
    EvaluationOptions,
    ExternalOptions,
    FaultToleranceOptions,
    LoopOptions,
    RewardOptions,
    RolloutOptions,
    RunOptions,
    SamplingOptions,
    TeacherOptions,
    TrainingOptions,
)
from miles_core.runtime.checks.report import Report

Test = Callable[[float], bool]


def _at_least(low: float) -> tuple[Test, str]:
    return lambda value: low <= value < math.inf, f"{low} or more"


def _above(low: float) -> tuple[Test, str]:
    return lambda value: low < value < math.inf, f"more than {low}"


def _between(low: float, high: float, open_low: bool = False) -> tuple[Test, str]:
    words = f"above {low} and at most {high}" if open_low else f"{low} to {high}"
    return lambda value: (low < value if open_low else low <= value) and value <= high, words


RANGES: dict[type, dict[str, tuple[Test, str]]] = {
    DebugOptions: {
        "load_debug_rollout_data_subsample": _between(0, 1, open_low=True),
        "memory_snapshot_num_steps": _at_least(1),
    },
    ClusterOptions: dict.fromkeys(
        (
            *("actor_num_nodes", "actor_num_gpus_per_node", "rollout_num_gpus", "rollout_num_gpus_per_engine", "num_gpus_per_node"),
            "distributed_timeout_minutes",
        ),
        _at_least(1),
    ),
    ExternalOptions: {
        "fetch_trajectory_retry_times": (lambda n: n >= -1, "-1 (no limit), or 0 or more"),
        "min_batch_collection_ratio": _between(0, 1, open_low=True),
    },
    FaultToleranceOptions: {
        "rollout_health_check_interval": _above(0),
        "rollout_health_check_timeout": _above(0),
        "rollout_health_check_first_wait": _at_least(0),
    },
    LoopOptions: dict.fromkeys(("update_weights_interval", "max_staleness"), _at_least(1)),
    RolloutOptions: {
        "rollout_top_p": _between(0, 1, open_low=True),
        "rollout_top_k": (lambda k: k == -1 or k >= 1, "-1 (off), or 1 or more"),
        "rollout_max_context_len": _at_least(2),
        "rollout_max_prompt_len": _at_least(1),
        "rollout_max_response_len": _at_least(1),
        "rollout_request_timeout": _above(0),
        "update_weight_buffer_size": _at_least(1),
        "logprob_diff_warn": _above(0),
        "logprob_diff_limit": _above(0),
    },
    SamplingOptions: {"over_sampling_batch_size": _at_least(1)},
    DataOptions: {
        "num_epoch": _at_least(1),
        "rollout_batch_size": _at_least(1),
        "n_samples_per_prompt": _at_least(1),
        "global_batch_size": _at_least(1),
        "num_steps_per_rollout": _at_least(1),
    },
    RewardOptions: {
        "reward_timeout": _above(0),
        "reward_workers": _at_least(1),
        "reward_failure_limit": _between(0, 1),
        "overlong_buffer_ratio": _between(0, 1),
        "overlong_penalty_factor": _at_least(0),
    },
    CriticOptions: {
        "critic_num_nodes": _at_least(1),
        "critic_num_gpus_per_node": _at_least(1),
        "critic_lr": _at_least(0),
        "critic_lr_warmup_iters": _at_least(0),
        "num_critic_only_steps": _at_least(0),
    },
    TeacherOptions: {
        "teacher_timeout": _above(0),
        "teacher_concurrency": _at_least(1),
        "teacher_retries": _at_least(0),
    },
    TrainingOptions: {
        "lr": _at_least(0),
        "min_lr": _at_least(0),
        "lr_decay_iters": _at_least(1),
        "lr_warmup_iters": _at_least(0),
        "lr_warmup_fraction": _between(0, 1),
        "weight_decay": _at_least(0),
        "adam_beta1": (lambda b: 0 <= b < 1, "0 or more and below 1"),
        "adam_beta2": (lambda b: 0 <= b < 1, "0 or more and below 1"),
        "adam_eps": _at_least(0),
        "clip_grad": _at_least(0),
        "micro_batch_size": _at_least(1),
        "max_tokens_per_gpu": _at_least(1),
        "log_probs_max_tokens_per_gpu": _at_least(1),
        "log_probs_chunk_size": (lambda n: n == -1 or n >= 1, "-1 (all), or 1 or more"),
        "data_pad_size_multiplier": _at_least(1),
    },
    EvaluationOptions: {
        "eval_interval": _at_least(1),
        "n_samples_per_eval_prompt": _at_least(1),
        "eval_temperature": _at_least(0),
        "eval_top_p": _between(0, 1, open_low=True),
        "eval_top_k": (lambda k: k == -1 or k >= 1, "-1 (off), or 1 or more"),
        "eval_max_response_len": _at_least(1),
        "eval_max_prompt_len": _at_least(1),
        "eval_min_new_tokens": _at_least(0),
    },
    AlgorithmOptions: {"loss_length_divisor": _at_least(0), "ref_update_interval": _at_least(1)},
    CheckpointOptions: {"save_interval": _at_least(1), "save_total_limit": _at_least(1)},
    RunOptions: {"max_skipped_rollouts": _at_least(1)},
}
"""Legal values, tested when the option is not None."""


def check_ranges(report: Report) -> None:
    """Every number is one that its option can have."""
    for group, fields in RANGES.items():
        options: Any = report.peek(group)
        for name, (legal, words) in fields.items():
            value = getattr(options, name)
            if value is not None and not legal(value):
                report.error("M209", f"{report.said(group, name)} is out of range", fix=f"give {words}")
    rollout = report.peek(RolloutOptions)
    if not report.supervised and not 0 < rollout.rollout_temperature < math.inf:
        report.error(
            "M209",
            f"{report.said(RolloutOptions, 'rollout_temperature')} is out of range",
            why="training divides the logits by it, and greedy samples of one prompt are all equal",
            fix="give more than 0; for greedy evaluation use --eval-temperature 0",
        )
    if rollout.logprob_diff_limit < rollout.logprob_diff_warn:
        said, other = (report.said(RolloutOptions, name) for name in ("logprob_diff_limit", "logprob_diff_warn"))
        report.error("M209", f"{said} is below {other}", why="the run would stop before it warns", fix="raise the limit")


def check_partners(report: Report) -> None:
    """Options that need another one, and paths that must be free."""
    checkpoint, run = report.peek(CheckpointOptions), report.peek(RunOptions)
    if checkpoint.save is None and checkpoint.save_interval is not None:
        said = report.said(CheckpointOptions, "save_interval")
        report.error("M215", f"{said} needs --save", why="nothing says where to save", fix="give --save DIR")
    folders = ((CheckpointOptions, "save", checkpoint.save), (CheckpointOptions, "save_hf", checkpoint.save_hf),
               (RunOptions, "run_dir", run.run_dir))  # fmt: skip
    for group, name, text in folders:
        if text is None:
            continue
        path = Path(text).expanduser()
        taken = next((p for p in (path, *path.parents) if p.exists()), None)
        if taken is not None and not taken.is_dir():
            fix = "give another path"
            report.error("M223", f"{report.said(group, name)} cannot be a folder", owner=str(taken), why="that is a file", fix=fix)
