"""On-policy distillation as a penalty on any estimator (``--use-opd``).

Papers: Agarwal et al. 2024, arXiv:2306.13649; Lu et al. 2025, On-Policy Distillation (Thinking Machines).

Formula, per token, after the estimator and before whitening::

    A_t - opd_kl_coef * (log pi_old,t - log pi_teacher,t)

Assumptions: the teacher's log-probs are of the same tokens at the same temperature, and carry no gradient.

Omissions: returns stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from miles_algos.options import DistillationOptions

if TYPE_CHECKING:
    import torch

    from miles_core.options import Config
    from miles_core.protocols import AdvantageInputs

TEACHER_INPUTS = frozenset({"old_log_probs", "teacher_log_probs"})


class TeacherPenalty:
    """Does nothing unless it is switched on. ``needs`` adds to those of the estimator."""

    def __init__(self, config: Config) -> None:
        options = config.get(DistillationOptions)
        self.coef = options.opd_kl_coef if options.use_opd else 0.0
        self.needs: frozenset[str] = TEACHER_INPUTS if options.use_opd else frozenset()

    def __call__(self, advantages: torch.Tensor, inputs: AdvantageInputs) -> torch.Tensor:
        """Advantages with the penalty, ``[N]``."""
        if not self.needs:
            return advantages
        return advantages - self.coef * behind_teacher(inputs)


def behind_teacher(inputs: AdvantageInputs) -> torch.Tensor:
    """``log pi_old - log pi_teacher`` at unmasked tokens, 0 elsewhere, ``[N]``."""
    from miles_algos.losses.log_ratio import log_ratio

    assert inputs.old_log_probs is not None
    assert inputs.teacher_log_probs is not None
    return log_ratio(inputs.old_log_probs, inputs.teacher_log_probs, inputs.mask)
