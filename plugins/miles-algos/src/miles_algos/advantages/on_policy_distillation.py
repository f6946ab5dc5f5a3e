"""On-policy distillation: how much likelier than the policy a teacher finds each token that the policy sampled.

Papers: Agarwal et al. 2024, GKD, arXiv:2306.13649; Gu et al. 2024, MiniLLM, arXiv:2306.08543; Lu et al. 2025, On-Policy
Distillation (Thinking Machines).

Formula, per token: ``A_t = log pi_teacher,t - log pi_old,t``, whose mean is minus the reverse KL divergence from the teacher.

Assumptions: the teacher's log-probs are of the same tokens at the same temperature. Rewards play no part, and need not be graded.

Omissions: no discount, so that a token answers for itself alone; no full-vocabulary divergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from miles_algos.advantages.distillation import TEACHER_INPUTS, behind_teacher

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.protocols import AdvantageInputs, AdvantageOutputs


class OnPolicyDistillation:
    """Implements :class:`miles_core.protocols.Advantage`."""

    needs: frozenset[str] = TEACHER_INPUTS

    def __init__(self, config: Config) -> None:
        del config

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        """Rewards as they are; only metrics show them."""
        del groups
        return [float(r) for r in rewards]

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        """The teacher's log-probs less the policy's, ``[N]``; 0 at masked tokens."""
        from miles_core.protocols import AdvantageOutputs

        advantages = -behind_teacher(inputs)
        return AdvantageOutputs(advantages=advantages, returns=advantages)
