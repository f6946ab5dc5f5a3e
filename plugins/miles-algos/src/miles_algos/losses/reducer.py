"""A reduction of the policy-gradient term that is not core's (``--custom-pg-loss-reducer-function-path``).

Core sums ``weight * loss`` over tokens, with weights that follow from ``--calculate-per-token-loss`` and
``--loss-length-divisor``. To make the term's weight another one, the term is multiplied by the ratio of the two. KL and entropy
terms keep core's.

Formula, with u_t what the function says, before the division by samples (or by tokens, per token)::

    per sample:   u_t * M      M the unmasked tokens of the sample, at least 1
    per token:    u_t
    by L:         u_t * L
"""

from __future__ import annotations

from typing import Any

import torch

from miles_algos.options import ReducerOptions
from miles_core.config import AlgorithmOptions
from miles_core.options import Config
from miles_core.plugins import load_function
from miles_core.protocols import LossInputs
from miles_core.training.ragged import broadcast, sample_sum


class Reducer:
    """The function's weight of each token, relative to core's."""

    def __init__(self, function: Any, algorithm: AlgorithmOptions) -> None:
        self._function = function
        self._per_token = algorithm.calculate_per_token_loss
        self._divisor = algorithm.loss_length_divisor

    @classmethod
    def of(cls, config: Config) -> Reducer | None:
        """The reducer that the options name, or None."""
        function = load_function(config, ReducerOptions, "custom_pg_loss_reducer_function_path")
        return None if function is None else cls(function, config.get(AlgorithmOptions))

    def __call__(self, inputs: LossInputs) -> torch.Tensor:
        """Factors of the policy-gradient terms, ``[N]``."""
        weights: torch.Tensor = self._function(inputs.mask, inputs.lengths).to(inputs.mask)
        if self._per_token:
            return weights
        if self._divisor is not None:
            return weights * self._divisor
        return weights * broadcast(sample_sum(inputs.mask, inputs.lengths).clamp(min=1), inputs.lengths)
