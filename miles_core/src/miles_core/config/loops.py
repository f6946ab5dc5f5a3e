"""In which order a run generates, trains and publishes."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class LoopOptions:
    """Loop"""

    loop: str = option(
        "sync",
        flag="--loop",
        choices=("sync", "one-step", "async"),
        help=(
            "sync generates and trains in turn; one-step generates the next rollout while this one is trained on; async generates "
            "all the time, also while weights are trained and published."
        ),
    )
    update_weights_interval: int = option(
        1, flag="--update-weights-interval", help="Give the engines the trainer's weights after every k-th rollout."
    )
    max_staleness: int = option(
        1,
        flag="--max-staleness",
        help="How many versions behind the weights that engines serve a token may be when it is trained on (--loop async).",
    )
