"""What this package offers to miles. Light: nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from miles_core.config import ClusterOptions, TrainingOptions
from miles_core.errors import UsageError
from miles_core.plugins.hookspecs import hookimpl
from miles_core.plugins.records import EngineRecord
from miles_transformers.options import TransformersOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from miles_core.plugins.events import Configure

OWNER = "miles-transformers"


@hookimpl
def miles_engine() -> Sequence[EngineRecord]:
    """The ``transformers`` engine."""
    return [
        EngineRecord(
            name="transformers",
            create="miles_transformers.engine:TransformersEngine",
            options=TransformersOptions,
            summary="Embedded: batched KV-cache decoding of any transformers causal LM on CPU or one GPU",
            capabilities=frozenset(
                {
                    *("cpu", "cuda", "batch_stream", "routed_experts", "true_on_policy"),
                    *("shared_file", "cuda_ipc", "broadcast", "disk"),
                }
            ),
        )
    ]


@hookimpl
def miles_configure(event: Configure) -> None:
    """Check the numbers, and that an engine has one device."""
    options = event.config.get(TransformersOptions)
    for flag, value, low in (
        ("--transformers-max-batch", options.max_batch, 1),
        ("--transformers-kv-cache-tokens", options.kv_cache_tokens, 0),
        ("--transformers-prefill-tokens", options.prefill_tokens, 1),
        ("--transformers-threads", options.threads, 0),
    ):
        if value < low:
            event.error(UsageError("M450", f"{flag} is {value}", owner=OWNER, fix=f"give {low} or more"))
    if event.config.get(TrainingOptions).true_on_policy_mode and options.dtype == "bf16":
        what = "--transformers-dtype bf16 contradicts --true-on-policy-mode"
        why = "its exact difference of 0 is that of fp32"
        event.error(UsageError("M278", what, owner=OWNER, why=why, fix="leave one of them out"))
    if not 0.0 < options.kv_cache_share < 1.0:
        what = f"--transformers-kv-cache-share is {options.kv_cache_share}"
        event.error(UsageError("M450", what, owner=OWNER, why="it is a share", fix="give a number above 0 and below 1"))
    per_engine = event.config.get(ClusterOptions).rollout_num_gpus_per_engine
    if per_engine != 1:
        event.error(
            UsageError(
                "M450",
                f"--rollout-num-gpus-per-engine is {per_engine}",
                owner=OWNER,
                why="the transformers engine uses one GPU",
                fix="leave the option at 1, or take an engine that shards a model",
            )
        )
