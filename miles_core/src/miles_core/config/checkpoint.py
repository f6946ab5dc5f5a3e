"""Saving and resuming."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class CheckpointOptions:
    """Checkpoints"""

    save: str | None = option(None, flag="--save", metavar="DIR", help="Where to save the run state.")
    load: str | None = option(
        None,
        flag="--load",
        metavar="DIR",
        help="Run state to resume from: the newest good one in DIR. Starts fresh when DIR is empty.",
    )
    save_interval: int | None = option(
        None, flag="--save-interval", help="Rollouts between saves; the last rollout is always saved."
    )
    save_total_limit: int | None = option(None, flag="--save-total-limit", help="Run states to keep; older ones are deleted.")
    async_save: bool = option(
        False,
        flag="--async-save",
        help="Save in the background: training waits only until the state is copied to host memory, and goes on while it is "
        "written. Takes host memory for one state.",
    )
    save_hf: str | None = option(
        None, flag="--save-hf", metavar="DIR", help="Where to export the final model as an HF directory that transformers loads."
    )
