"""The clipped surrogate of PPO, for any ratio."""

from __future__ import annotations

import torch

from miles_algos.options import ClipOptions
from miles_core.options import Config


def clip_range(config: Config) -> tuple[float, float]:
    """``(1 - eps_clip, 1 + eps_clip_high)``."""
    options = config.get(ClipOptions)
    return 1.0 - options.eps_clip, 1.0 + (options.eps_clip if options.eps_clip_high is None else options.eps_clip_high)


def clipped(
    ratio: torch.Tensor, advantages: torch.Tensor, bounds: tuple[float, float], dual: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The surrogate with gradient, and 1 where the clipped term won, ``[N]`` each.

    Args:
        ratio: of current to old policy, with gradient, ``[N]``.
        advantages: 0 where masked, ``[N]``.
        bounds: of the ratio.
        dual: tokens of negative advantage lose at most this times its size.
    """
    plain = -ratio * advantages
    cut = -ratio.clamp(*bounds) * advantages
    surrogate = torch.maximum(plain, cut)
    if dual is not None:
        surrogate = torch.where(advantages < 0, torch.minimum(surrogate, -dual * advantages), surrogate)
    return surrogate, (cut > plain).to(surrogate.dtype)
