"""A function of the user's in the place of truncated importance sampling's own (``--custom-tis-function-path``).

``fn(inputs, pg_loss)`` gets :class:`miles_core.protocols.LossInputs` and the policy-gradient terms ``[N]``, and returns the terms
that it makes of them and a dict of metrics, ``[N]`` each.
"""

from __future__ import annotations

from typing import Any

import torch

from miles_algos.options import TisOptions
from miles_core.options import Config
from miles_core.plugins import load_function
from miles_core.protocols import LossInputs


class CustomTis:
    """Calls the function."""

    def __init__(self, config: Config) -> None:
        self._function: Any = load_function(config, TisOptions, "custom_tis_function_path")

    def __call__(self, policy: torch.Tensor, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The function's terms, ``[N]``, and its metrics."""
        terms, metrics = self._function(inputs, policy)
        return terms, dict(metrics)
