"""A loss: pure, per token. Core alone reduces and normalises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LossInputs:
    """The response tokens of one micro-batch, flattened over its B samples to ``[N]``, N = sum of ``lengths``.

    Attributes:
        log_probs: of the current policy, with gradient, ``[N]``.
        mask: 1 where the token is trained on, float, ``[N]``.
        lengths: response tokens of each sample, B entries; ``miles_core.training.ragged`` has per-sample operations.
        old_log_probs: of the policy before this rollout's first optimizer step, ``[N]``; equal to ``log_probs`` detached
            when the rollout has one step.
        rollout_log_probs: of the engine, ``[N]``; None when the engine made none of the batch (SFT).
        ref_log_probs: of the reference model, ``[N]``; None unless needed.
        advantages, returns: ``[N]``; None when not computed.
        old_values, values: of the critic, before the rollout's first step and now, ``[N]``; None unless needed.
        entropy: of the current policy, with gradient, ``[N]``; None unless needed.
        logits: of the current policy, divided by the temperature, with gradient, ``[N, V]``; None unless needed.
        tokens: the response tokens themselves, int64, ``[N]``.
    """

    log_probs: torch.Tensor
    mask: torch.Tensor
    lengths: Sequence[int]
    old_log_probs: torch.Tensor
    rollout_log_probs: torch.Tensor | None = None
    ref_log_probs: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    old_values: torch.Tensor | None = None
    values: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


@dataclass(frozen=True)
class LossOutputs:
    """Per-token terms.

    Attributes:
        loss: ``[N]``, with gradient. Core masks it, sums it, and divides by the global count of samples or tokens.
        metrics: further ``[N]`` terms, without gradient, reduced in the same way and logged as ``train/<name>``.
    """

    loss: torch.Tensor
    metrics: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Loss(Protocol):
    """Made by ``create(config)``.

    ``needs`` names the inputs beyond ``log_probs``, ``mask`` and ``lengths`` that must be present, of: ``old_log_probs``,
    ``rollout_log_probs``, ``ref_log_probs``, ``advantages``, ``returns``, ``old_values``, ``values``, ``entropy``,
    ``logits``.
    """

    needs: frozenset[str]

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        """Per-token loss. Pure: no state, no collectives, no reduction over tokens of different samples."""
        ...
