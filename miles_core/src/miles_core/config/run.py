"""The run folder."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class RunOptions:
    """Run"""

    run_dir: str | None = option(
        None,
        flag="--run-dir",
        metavar="DIR",
        help="Folder for the resolved config, the plugin lock, metrics and logs. runs/<time> when not given.",
    )
    max_skipped_rollouts: int = option(
        10,
        flag="--max-skipped-rollouts",
        help="Stop the run after this many rollouts in a row without an informative group (all rewards of every group equal).",
    )
