"""What every algorithm shares."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class AlgorithmOptions:
    """Algorithm"""

    calculate_per_token_loss: bool = option(
        False, flag="--calculate-per-token-loss", help="Average the loss over all tokens of a step, not first within each sample."
    )
    ref_load: str | None = option(
        None, flag="--ref-load", metavar="DIR", help="HF directory of the reference model; --hf-checkpoint when not given."
    )
