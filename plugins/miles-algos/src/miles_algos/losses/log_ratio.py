"""Differences of log-probs, made safe for exponentiation and for masked tokens."""

from __future__ import annotations

import torch

MAX_EXPONENT = 20.0
"""exp(20) is 4.9e8: beyond any ratio worth telling apart, and far from float32's overflow at exp(88)."""


def log_ratio(numerator: torch.Tensor, denominator: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``numerator - denominator`` of two log-probs, ``[N]``, finite wherever both are numbers or minus infinity.

    Masked tokens are 0 and pass no gradient, whatever they hold. So is a token that both sides call impossible (minus infinity
    twice): they agree. NaN at a token that is trained on stays NaN, because it means that the model is broken.
    An infinite difference becomes +-20.
    """
    keep = (mask > 0) & ~(torch.isinf(numerator) & (numerator == denominator))
    zero = torch.zeros((), dtype=numerator.dtype, device=numerator.device)
    difference = torch.where(keep, numerator, zero) - torch.where(keep, denominator, zero)
    return torch.nan_to_num(difference, nan=float("nan"), posinf=MAX_EXPONENT, neginf=-MAX_EXPONENT)


def safe_exp(exponent: torch.Tensor) -> torch.Tensor:
    """``exp`` with the exponent clamped to +-20; beyond, the gradient is 0."""
    return exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT).exp()


def masked(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``values`` with masked tokens set to 0, without gradient there, ``[N]``."""
    return torch.where(mask > 0, values, torch.zeros((), dtype=values.dtype, device=values.device))
