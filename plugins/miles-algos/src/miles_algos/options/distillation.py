"""Options of the teacher's penalty, which goes with any estimator."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class DistillationOptions:
    """On-policy distillation as a penalty"""

    use_opd: bool = option(
        False, flag="--use-opd", help="Subtract from every token's advantage how much likelier the policy finds it than a teacher."
    )
    opd_kl_coef: float = option(1.0, flag="--opd-kl-coef", help="Weight of that penalty.")
