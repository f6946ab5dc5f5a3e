"""What miles-algos offers. Standard library and miles_core only."""

from __future__ import annotations

from collections.abc import Sequence

from miles_algos.checks import problems, warnings
from miles_algos.options import (
    ClipOptions,
    CustomLossOptions,
    DiscountOptions,
    DistillationOptions,
    DualClipOptions,
    EntropyOptions,
    GaeOptions,
    GroupRewardOptions,
    GroupStdOptions,
    KlLossOptions,
    KlOptions,
    OpsmOptions,
    ReducerOptions,
    RejectionOptions,
    RewardKlOptions,
    SoftGateOptions,
    TisOptions,
    ValueLossOptions,
)
from miles_algos.recipes import RECIPES
from miles_core.plugins import AdvantageRecord, AlgorithmRecord, FilterRecord, LossRecord, hookimpl
from miles_core.plugins.events import Configure

TEACHER_PENALTY = frozenset({"teacher:--use-opd"})
REWARD_KL = (RewardKlOptions, KlOptions)
TERMS = (KlLossOptions, KlOptions, EntropyOptions, TisOptions, RejectionOptions, OpsmOptions, ReducerOptions)
"""What every policy loss has beside its surrogate."""


@hookimpl
def miles_advantage() -> Sequence[AdvantageRecord]:
    return [
        AdvantageRecord(
            name="grpo",
            create="miles_algos.advantages.grpo:Grpo",
            options=(GroupRewardOptions, GroupStdOptions, DistillationOptions),
            summary="Rewards relative to the group of the same prompt, at every token",
            capabilities=TEACHER_PENALTY,
        ),
        AdvantageRecord(
            name="gspo",
            create="miles_algos.advantages.grpo:Grpo",
            options=(GroupRewardOptions, GroupStdOptions, DistillationOptions),
            summary="The advantage of grpo, for the loss gspo_loss",
            capabilities=TEACHER_PENALTY,
        ),
        AdvantageRecord(
            name="rloo",
            create="miles_algos.advantages.rloo:Rloo",
            options=(GroupRewardOptions, *REWARD_KL, DistillationOptions),
            summary="Rewards less the mean of the other responses to the prompt",
            capabilities=TEACHER_PENALTY,
        ),
        AdvantageRecord(
            name="reinforce_plus_plus",
            create="miles_algos.advantages.reinforce_plus_plus:ReinforcePlusPlus",
            options=(DiscountOptions, *REWARD_KL, DistillationOptions),
            summary="Discounted returns with a KL penalty in the reward, whitened",
            capabilities=TEACHER_PENALTY,
        ),
        AdvantageRecord(
            name="reinforce_plus_plus_baseline",
            create="miles_algos.advantages.reinforce_plus_plus_baseline:ReinforcePlusPlusBaseline",
            options=(GroupRewardOptions, *REWARD_KL, DistillationOptions),
            summary="Rewards less their group's mean, with a KL penalty, whitened",
            capabilities=TEACHER_PENALTY,
        ),
        AdvantageRecord(
            name="ppo",
            create="miles_algos.advantages.ppo:Ppo",
            options=(DiscountOptions, GaeOptions, *REWARD_KL, DistillationOptions),
            summary="Generalised advantage estimation on a critic's values",
            capabilities=TEACHER_PENALTY | {"critic"},
        ),
        AdvantageRecord(
            name="on_policy_distillation",
            create="miles_algos.advantages.on_policy_distillation:OnPolicyDistillation",
            summary="How much likelier than the policy a teacher finds each token",
            capabilities=frozenset({"teacher", "reward_free"}),
        ),
    ]


@hookimpl
def miles_loss() -> Sequence[LossRecord]:
    return [
        LossRecord(
            name="policy_loss",
            create="miles_algos.losses.policy_loss:PolicyLoss",
            options=(ClipOptions, DualClipOptions, *TERMS),
            summary="Clipped policy gradient of PPO, with dual clip",
        ),
        LossRecord(
            name="gspo_loss",
            create="miles_algos.losses.gspo_loss:GspoLoss",
            options=(ClipOptions, *TERMS),
            summary="Clipped policy gradient with one ratio for a whole response",
        ),
        LossRecord(
            name="cispo",
            create="miles_algos.losses.cispo:Cispo",
            options=(ClipOptions, *TERMS),
            summary="Policy gradient under a clipped importance weight",
        ),
        LossRecord(
            name="sapo",
            create="miles_algos.losses.sapo:Sapo",
            options=(SoftGateOptions, *TERMS),
            summary="Policy gradient under a soft gate of the ratio",
        ),
        LossRecord(
            name="custom_loss",
            create="miles_algos.losses.custom_loss:create",
            options=CustomLossOptions,
            summary="A function that --custom-loss-function-path names",
            capabilities=frozenset({"advantage_free"}),
        ),
        LossRecord(
            name="sft_loss",
            create="miles_algos.losses.sft_loss:SftLoss",
            summary="Negative log-likelihood of responses from the data",
            capabilities=frozenset({"supervised"}),
        ),
        LossRecord(
            name="value_loss",
            create="miles_algos.losses.value_loss:ValueLoss",
            options=ValueLossOptions,
            summary="Clipped squared error of a critic's values",
            capabilities=frozenset({"critic"}),
        ),
    ]


@hookimpl
def miles_filter() -> Sequence[FilterRecord]:
    return [
        FilterRecord(
            name="nonzero_std",
            create="miles_algos.filters.nonzero_std:NonzeroStd",
            summary="Keep only groups whose rewards differ (DAPO's dynamic sampling)",
        )
    ]


@hookimpl
def miles_algo() -> Sequence[AlgorithmRecord]:
    return RECIPES


@hookimpl
def miles_configure(event: Configure) -> None:
    """Report contradictory options of the selected algorithms."""
    for problem in problems(event.config):
        event.error(problem)
    for line in warnings(event.config):
        event.warn(line)
