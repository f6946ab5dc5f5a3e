"""Ratios of the trainer's to the engine's probabilities, of tokens or whole responses."""

from __future__ import annotations

import torch

from miles_algos.losses.log_ratio import log_ratio, masked, safe_exp
from miles_core.protocols import LossInputs
from miles_core.training.ragged import broadcast, masked_mean, masked_sum


def mismatch_ratio(inputs: LossInputs, level: str) -> torch.Tensor:
    """``pi_old / pi_engine`` at unmasked tokens, 1 elsewhere, without gradient, ``[N]``.

    Args:
        inputs: with ``rollout_log_probs``; the old log-probs are the trainer's own.
        level: ``token``; ``sequence``, the product over a response, at each of its tokens; ``geometric``, its M-th root.

    Raises:
        ValueError: unknown ``level``.
    """
    assert inputs.rollout_log_probs is not None
    difference = log_ratio(inputs.old_log_probs.detach(), inputs.rollout_log_probs, inputs.mask)
    if level in ("sequence", "geometric"):
        whole = masked_sum if level == "sequence" else masked_mean
        difference = masked(broadcast(whole(difference, inputs.mask, inputs.lengths), inputs.lengths), inputs.mask)
    elif level != "token":
        raise ValueError(f"unknown level {level!r}")
    return safe_exp(difference)
