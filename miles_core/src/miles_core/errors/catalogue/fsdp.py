"""M580 to M586: the fsdp backend."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

FSDP_OPTIONS: dict[str, Explanation] = {
    "M580": Explanation(
        title="Copies of the weights that do not fit",
        meaning="`--dp-replicate-size` groups of ranks each hold all weights, so that it must divide the training ranks.",
        remedy="Take a size that divides the ranks, or leave it out to share the weights out over all of them.",
        example=(
            "M580 miles-fsdp 0.1.0: --dp-replicate-size 4 does not fit the run: 6 ranks of the actor are no multiple of it. Do: "
            "change the number of ranks or this size"
        ),
    ),
}
"""Found before a run starts."""
