"""Rollouts that agents outside the run make."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class ExternalOptions:
    """External rollouts"""

    rollout_buffer_url: str | None = option(
        None,
        flag="--rollout-buffer-url",
        metavar="URL",
        help="Take trajectories from the rollout buffer at this address, where agents post them, in place of generating any.",
    )
    fetch_trajectory_retry_times: int = option(
        -1,
        flag="--fetch-trajectory-retry-times",
        help="How often a call to --rollout-buffer-url that failed is repeated, with growing pauses; -1 never gives up.",
    )
    min_batch_collection_ratio: float = option(
        1.0,
        flag="--min-batch-collection-ratio",
        help="Share of --rollout-batch-size that has to be in the rollout buffer before training goes on.",
    )
    rollout_buffer_token: str | None = option(
        None,
        flag="--rollout-buffer-token",
        metavar="TOKEN",
        secret=True,
        help="Bearer token for --rollout-buffer-url. Taken from the environment variable MILES_ROLLOUT_BUFFER_TOKEN only.",
    )
