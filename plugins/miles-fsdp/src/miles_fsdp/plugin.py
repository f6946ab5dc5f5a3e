"""What this package offers to miles. Light: nothing here imports torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from typing import TYPE_CHECKING

from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.errors import UsageError
from miles_core.plugins import hookimpl
from miles_core.plugins.records import BackendRecord
from miles_fsdp.checks import compile_problems, group_problems
from miles_fsdp.options import FsdpOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from miles_core.options import Config
    from miles_core.plugins.events import Configure

OWNER = "miles-fsdp"
VARLEN_SINCE = (2, 10)
"""The PyTorch that has flash attention over packed rows of its own."""


@hookimpl
def miles_backend() -> Sequence[BackendRecord]:
    """The ``fsdp`` backend."""
    return [
        BackendRecord(
            name="fsdp",
            create="miles_fsdp.backend:FsdpBackend",
            options=FsdpOptions,
            summary="PyTorch FSDP2 (fully_shard) on CPU and GPU, for any causal LM of transformers",
            capabilities=frozenset({"cpu", "cuda", "critic", "routing_replay", "true_on_policy", "context_parallel", "async_save"}),
        )
    ]


@hookimpl
def miles_configure(event: Configure) -> None:
    """Check what can be checked without torch: attention that cannot run, groups that do not fit, impossible schedules."""
    config = event.config
    options, cluster, training = config.get(FsdpOptions), config.get(ClusterOptions), config.get(TrainingOptions)
    if options.attn_implementation == "flash_attention_2" and chosen_by_user(config, "attn_implementation"):
        why = ""
        if cluster.device == "cpu":
            why = "flash-attn runs on GPUs only and --device is cpu"
        elif importlib.util.find_spec("flash_attn") is None and _torch_version() < VARLEN_SINCE:
            why = "the package flash-attn is not installed, and PyTorch's own kernels came with PyTorch 2.10"
        elif options.precision == "fp32":
            why = "flash-attn has no fp32 kernels and --fsdp-precision is fp32"
        if why:
            fix = "leave --attn-implementation out, or set it to sdpa"
            event.error(UsageError("M341", "--attn-implementation flash_attention_2 cannot be used", owner=OWNER, why=why, fix=fix))
    problems = group_problems(config, attention_chosen=chosen_by_user(config, "attn_implementation"))
    for problem in (*problems, *compile_problems(config)):
        event.error(problem)
    if training.true_on_policy_mode and options.precision == "bf16":
        why = "its exact difference of 0 is that of fp32"
        fix = "leave one of them out"
        what = "--fsdp-precision bf16 contradicts --true-on-policy-mode"
        event.error(UsageError("M278", what, owner=OWNER, why=why, fix=fix))
    fraction = training.lr_warmup_fraction
    if fraction is not None and not 0.0 <= fraction <= 1.0:
        event.error(UsageError("M347", f"--lr-warmup-fraction is {fraction}", owner=OWNER, why="it is a share", fix="give 0 to 1"))
    if training.min_lr > training.lr and training.lr_decay_style != "constant":
        event.error(
            UsageError(
                "M347",
                f"--min-lr {training.min_lr} is above --lr {training.lr}",
                owner=OWNER,
                why="a decay goes down",
                fix="lower --min-lr",
            )
        )


def _torch_version() -> tuple[int, ...]:
    """Major and minor version, without importing it."""
    return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("torch"))[:2])


def chosen_by_user(config: Config, field: str) -> bool:
    """Whether a field of :class:`FsdpOptions` was set by the user and is not a default."""
    from miles_core.options import Source

    return any(
        option.group is FsdpOptions and option.field == field and value.source not in (Source.DEFAULT, Source.RECIPE)
        for option, value in config.items()
    )
