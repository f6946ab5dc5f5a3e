"""The learning rate of each optimizer step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miles_core.config import TrainingOptions


def learning_rate(options: TrainingOptions, train_steps: int, step: int) -> float:
    """The learning rate of the optimizer step that follows ``step`` finished ones.

    Linear warm-up from 0, then by ``--lr-decay-style``: ``constant``; ``linear`` and ``cosine`` to ``--min-lr`` over the steps
    that remain of the decay; ``inverse-square-root`` as ``lr * sqrt(warmup / step)``, not below ``--min-lr``. After the decay the
    rate stays at ``--min-lr``, except that a constant one stays constant. The formulas are Megatron-LM's
    (``OptimizerParamScheduler``), counted in steps.

    Args:
        options: rates, style, warm-up and length of the decay.
        train_steps: optimizer steps of the run: the decay's length when ``--lr-decay-iters`` is not given.
        step: optimizer steps finished so far, from 0.
    """
    peak, low = options.lr, options.min_lr
    decay = options.lr_decay_iters if options.lr_decay_iters is not None else train_steps
    fraction = options.lr_warmup_fraction
    warmup = options.lr_warmup_iters if fraction is None else math.ceil(fraction * decay)
    if step < warmup:
        return peak * step / warmup
    if options.lr_decay_style == "constant":
        return peak
    if step >= decay:
        return low
    if options.lr_decay_style == "inverse-square-root":
        return max(low, peak * math.sqrt(max(warmup, 1) / max(step, 1)))
    done = (step - warmup) / (decay - warmup)
    share = 1.0 - done if options.lr_decay_style == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return low + (peak - low) * share
