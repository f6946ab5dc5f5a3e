"""The corrections that a run asked for, in their order."""

from __future__ import annotations

from collections.abc import Callable

import torch

from miles_algos.corrections.custom import CustomTis
from miles_algos.corrections.opsm import Opsm
from miles_algos.corrections.rejection import Rejection
from miles_algos.corrections.tis import Tis
from miles_algos.options import OpsmOptions, RejectionOptions, TisOptions
from miles_core.options import Config
from miles_core.protocols import LossInputs

Correction = Callable[[torch.Tensor, LossInputs], tuple[torch.Tensor, dict[str, torch.Tensor]]]


class Corrections:
    """Applies every correction; false when there is none.

    ``keeps_zero`` says whether a term of 0 surely stays 0, which nobody knows of a function of the user's.
    """

    def __init__(self, config: Config) -> None:
        tis = config.get(TisOptions)
        self._steps: list[Correction] = []
        needs: set[str] = set()
        if config.get(OpsmOptions).use_opsm:
            self._steps.append(Opsm(config.get(OpsmOptions).opsm_delta))
        custom = tis.custom_tis_function_path is not None
        if tis.use_tis or custom:
            self._steps.append(CustomTis(config) if custom else Tis(tis))
            needs.add("rollout_log_probs")
        if config.get(RejectionOptions).use_rs:
            self._steps.append(Rejection(config.get(RejectionOptions)))
            needs.add("rollout_log_probs")
        self.needs: frozenset[str] = frozenset(needs)
        self.keeps_zero: bool = not custom

    def __bool__(self) -> bool:
        return bool(self._steps)

    def __call__(self, policy: torch.Tensor, inputs: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The policy-gradient terms after every correction, ``[N]``, and the corrections' metrics."""
        metrics: dict[str, torch.Tensor] = {}
        for step in self._steps:
            policy, found = step(policy, inputs)
            metrics |= found
        return policy, metrics
