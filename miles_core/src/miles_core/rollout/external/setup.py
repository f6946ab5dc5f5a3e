"""The source of a run's external rollouts, and what agents are told about the run."""

from __future__ import annotations

import json
from collections.abc import Sequence

from miles_core.config import CheckpointOptions, DataOptions, ExternalOptions, RewardOptions, RolloutOptions, RoutingOptions
from miles_core.options import Config
from miles_core.protocols import Filter
from miles_core.rollout.external.client import BufferClient
from miles_core.rollout.external.source import Decode, ExternalSource
from miles_core.runtime.checks.teacher import vocab_size
from miles_core.runtime.experts import read_experts
from miles_core.runtime.plan import RunPlan


def make_external(config: Config, plan: RunPlan, urls: Sequence[str], filters: Sequence[Filter], decode: Decode) -> ExternalSource:
    """The source that ``--rollout-buffer-url`` asks for.

    Args:
        urls: of the engines.
        decode: text of response tokens.
    """
    options, rollout = config.get(ExternalOptions), config.get(RolloutOptions)
    model = json.loads((plan.checkpoint / "config.json").read_text(encoding="utf-8"))
    payload = {
        "remote_engine_url": urls[0],
        "engine_urls": list(urls),
        "remote_buffer_url": options.rollout_buffer_url,
        "input_file": config.get(DataOptions).prompt_data,
        "tokenizer_path": str(plan.checkpoint),
        "num_repeat_per_sample": plan.batch.n_samples,
        "rollout_batch_size": plan.batch.rollout_batch_size,
        "num_rollout": plan.batch.num_rollout,
        "max_tokens": rollout.rollout_max_response_len,
        "sampling_params": {
            "max_new_tokens": rollout.rollout_max_response_len,
            "temperature": rollout.rollout_temperature,
            "top_p": rollout.rollout_top_p,
            "top_k": rollout.rollout_top_k,
            "stop": list(rollout.rollout_stop or ()),
            "stop_token_ids": list(rollout.rollout_stop_token_ids or ()),
        },
    }
    return ExternalSource(
        BufferClient(options),
        payload,
        filters,
        decode,
        plan.batch.n_samples,
        options.min_batch_collection_ratio,
        vocab_size(model),
        rollout.rollout_max_context_len,
        config.get(CheckpointOptions).save is not None,
        config.get(RewardOptions).reward_failure_limit,
        experts=read_experts(model) if config.get(RoutingOptions).use_rollout_routing_replay else None,
    )
