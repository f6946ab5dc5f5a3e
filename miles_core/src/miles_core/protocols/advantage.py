"""An advantage estimator, in two pure stages: rewards over whole groups, then tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AdvantageInputs:
    """Rows of one data-parallel rank, whole rollout: B samples with N response tokens in all, flattened.

    Attributes:
        rewards: shaped rewards, one per sample, ``[B]``.
        mask: 1 where the token is trained on, float, ``[N]``.
        lengths: response tokens of each sample, B entries.
        old_log_probs, ref_log_probs, teacher_log_probs, values: ``[N]``; None unless the estimator needs them.
    """

    rewards: torch.Tensor
    mask: torch.Tensor
    lengths: Sequence[int]
    old_log_probs: torch.Tensor | None = None
    ref_log_probs: torch.Tensor | None = None
    teacher_log_probs: torch.Tensor | None = None
    values: torch.Tensor | None = None


@dataclass(frozen=True)
class AdvantageOutputs:
    """Advantages and returns, ``[N]`` each."""

    advantages: torch.Tensor
    returns: torch.Tensor


class Advantage(Protocol):
    """Made by ``create(config)``. ``needs`` names the optional fields of :class:`AdvantageInputs` that must be present."""

    needs: frozenset[str]

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Rewards after group normalisation, over a whole rollout, in the rollout manager.

        Args:
            rewards: one per sample, failures left out.
            groups: group number of each sample; a group may be short when samples failed.
        """
        ...

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        """Advantages and returns per token. Pure."""
        ...
