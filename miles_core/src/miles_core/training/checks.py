"""What must hold while training, checked on every run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from miles_core.errors import RunError, UsageError
from miles_core.protocols.loss import LossInputs

if TYPE_CHECKING:
    from miles_core.protocols.advantage import Advantage
    from miles_core.protocols.loss import Loss

LOSS_INPUTS = frozenset({"old_log_probs", "rollout_log_probs", "ref_log_probs", "advantages", "returns", "entropy", "logits"})
"""What the trainer can give to a loss."""
ADVANTAGE_INPUTS = frozenset({"old_log_probs", "ref_log_probs", "teacher_log_probs", "values"})
"""What the trainer can give to an advantage estimator."""

FIRST_STEP_WARN = {"cpu": 1e-3}
"""Mean absolute log-ratio of a rollout's first step to warn at, by device type: rounding alone explains less."""
FIRST_STEP_WARN_ELSEWHERE = 0.02
FIRST_STEP_LIMIT = 0.2
"""The same, to stop at: as large as the usual clip range."""
UNSTABLE_STEPS_LIMIT = 10
"""Optimizer steps in a row with a non-finite gradient to stop at."""

_OWNER = "miles-core"
_log = logging.getLogger(__name__)


def check_needs(loss: Loss, advantage: Advantage | None) -> None:
    """Raise ``UsageError`` (M410) when loss or estimator need what the trainer does not compute."""
    parts: list[tuple[object, frozenset[str], frozenset[str]]] = [(loss, loss.needs, LOSS_INPUTS)]
    if advantage is not None:
        parts.append((advantage, advantage.needs, ADVANTAGE_INPUTS))
    for part, needs, known in parts:
        if needs - known:
            raise UsageError(
                "M410",
                f"{type(part).__qualname__} needs {', '.join(sorted(needs - known))}",
                owner=type(part).__module__,
                why=f"this trainer gives {', '.join(sorted(known))}",
            )
    if advantage is None and loss.needs & {"advantages", "returns"}:
        raise UsageError(
            "M410",
            f"{type(loss).__qualname__} needs advantages, and there is no advantage estimator",
            owner=type(loss).__module__,
            fix="name one by --advantage-estimator or --algo",
        )


def check_rollout_log_probs(who: str, log_probs: np.ndarray | None, mask: np.ndarray) -> None:
    """Raise ``RunError`` (M411) when ``who`` needs rollout log-probs and an unmasked token has none."""
    if (log_probs is None and mask.any()) or (log_probs is not None and np.isnan(log_probs[mask != 0]).any()):
        raise RunError(
            "M411",
            f"{who} needs rollout log-probs, and a sample has none",
            owner=_OWNER,
            why="the response was not made by an engine, or the rollout function dropped them",
        )


def check_difference(
    mean: float, largest: float, *, warn: float, limit: float, rollout_id: int, speak: bool, exact: bool = False
) -> None:
    """Compare the mean absolute difference of rollout and training log-probs with its bounds.

    Raises:
        RunError: it is above ``limit``, or not a number (M413); or ``exact`` and not 0 (M491).
    """
    if exact and largest != 0:
        raise RunError(
            "M491",
            f"rollout {rollout_id}: rollout and training log-probs differ by {mean:.4g} on average, {largest:.4g} at most",
            owner=_OWNER,
            why="--true-on-policy-mode promises a difference of exactly 0",
            fix=(
                "run with --check-weight-update-equal, and see that engine and trainer run the same PyTorch on the same kind of "
                "processor"
            ),
            mean=mean,
            largest=largest,
        )
    if not mean <= limit:
        raise RunError(
            "M413",
            f"rollout {rollout_id}: rollout and training log-probs differ by {mean:.4g} on average, {largest:.4g} at most",
            owner=_OWNER,
            why=(
                f"more than --logprob-diff-limit {limit:g}. Likely causes: the engine serves other weights than the trainer holds, "
                "another temperature or template, a model that the engine computes differently, or samples of an old policy"
            ),
            fix="run with --check-weight-update-equal, compare the temperatures, or raise --logprob-diff-limit",
            mean=mean,
            largest=largest,
        )
    if mean > warn and speak:
        _log.warning(
            "rollout %d: rollout and training log-probs differ by %.4g on average, %.4g at most (--logprob-diff-warn %g)",
            rollout_id,
            mean,
            largest,
            warn,
        )


def check_first_step(mean: float, *, device: torch.device, rollout_id: int, speak: bool) -> None:
    """Compare the mean absolute log-ratio of the first optimizer step, which is on policy, with 0.

    Raises:
        RunError: it is above 0.2, or not a number (M414).
    """
    if not mean <= FIRST_STEP_LIMIT:
        raise RunError(
            "M414",
            f"rollout {rollout_id}: the first optimizer step is off policy, its log-ratio is {mean:.4g} on average instead of 0",
            owner=_OWNER,
            why="two passes over the same tokens with the same weights disagree: dropout, or a backend that depends on the batch",
            fix="turn dropout off, and try --qkv-format bshd or another attention implementation",
            mean=mean,
        )
    if mean > FIRST_STEP_WARN.get(device.type, FIRST_STEP_WARN_ELSEWHERE) and speak:
        _log.warning("rollout %d: the log-ratio of the first optimizer step is %.4g on average instead of 0", rollout_id, mean)


def check_stable(steps: int, rollout_id: int) -> None:
    """Raise ``RunError`` (M416) after too many steps in a row with a non-finite gradient."""
    if steps >= UNSTABLE_STEPS_LIMIT:
        raise RunError(
            "M416",
            f"rollout {rollout_id}: {steps} optimizer steps in a row had a gradient that is not finite",
            owner=_OWNER,
            why="the loss or the weights hold infinities or NaN",
            fix="resume from an earlier state with a lower --lr, and check the rewards",
        )


def check_advantages(advantage: Advantage, mask: torch.Tensor, *results: torch.Tensor) -> None:
    """Raise ``RunError`` when advantages are of a wrong shape (M412), or not finite where the mask is on (M415)."""
    owner, name = type(advantage).__module__, type(advantage).__qualname__
    for result in results:
        if result.shape != mask.shape:
            why = f"it returned a tensor of shape {tuple(result.shape)} for {mask.shape[0]} response tokens"
            raise RunError("M412", f"the advantage estimator {name} cannot be used", owner=owner, why=why)
        if not torch.isfinite(result[mask != 0]).all():
            raise RunError(
                "M415", f"{name} gave advantages that are not finite", owner=owner, why="a reward or a log-prob is not finite"
            )


def zero_metrics(loss: Loss) -> frozenset[str]:
    """Metrics of a loss that are 0 wherever the advantage is 0, found by asking it about tokens on and off the policy.

    Trainer and engine agree about a token, disagree a little, and are far apart both ways: each in a response of its own too, so
    that bounds of whole responses act as well.
    """
    log_probs = torch.tensor([-1.0, -2.0, -0.5, -3.0, -30.0, -0.1])
    old = torch.tensor([-1.1, -1.0, -2.0, -3.0, -30.1, -0.2])
    rollout = torch.tensor([-1.0, -1.3, -2.0, -2.0, -0.1, -30.0])
    outputs = loss(
        LossInputs(
            log_probs=log_probs,
            mask=torch.ones(6),
            lengths=(4, 1, 1),
            old_log_probs=old,
            rollout_log_probs=rollout,
            ref_log_probs=old,
            advantages=torch.zeros(6),
            returns=torch.zeros(6),
            entropy=torch.ones(6),
        )
    )
    return frozenset(name for name, term in outputs.metrics.items() if not term.any())
