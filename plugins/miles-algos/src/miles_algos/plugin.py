"""What miles-algos offers, and the checks of its options. Standard library and miles_core only."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Sequence

from miles_algos.options import GroupRewardOptions, PolicyLossOptions, ValueLossOptions
from miles_core.config import DataOptions, PluginOptions
from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.plugins import AdvantageRecord, AlgorithmRecord, FilterRecord, LossRecord, hookimpl
from miles_core.plugins.events import Configure

DISTRIBUTION = "miles-algos"


@hookimpl
def miles_advantage() -> Sequence[AdvantageRecord]:
    return [
        AdvantageRecord(
            name="grpo",
            create="miles_algos.advantages.grpo:Grpo",
            options=GroupRewardOptions,
            summary="Rewards relative to the group of the same prompt, at every token",
        )
    ]


@hookimpl
def miles_loss() -> Sequence[LossRecord]:
    return [
        LossRecord(
            name="policy_loss",
            create="miles_algos.losses.policy_loss:PolicyLoss",
            options=PolicyLossOptions,
            summary="Clipped policy gradient of PPO, with dual clip, KL and entropy terms",
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
    return [
        AlgorithmRecord(name="grpo", advantage="grpo", loss="policy_loss", summary="Group relative policy optimisation: no critic"),
        AlgorithmRecord(name="sft", advantage=None, loss="sft_loss", summary="Supervised fine-tuning on labelled responses"),
    ]


@hookimpl
def miles_configure(event: Configure) -> None:
    """Report contradictory options of the selected algorithms."""
    for problem in problems(event.config):
        event.error(problem)


def problems(config: Config) -> Iterator[UsageError]:
    """Everything that is wrong with the options of the selected algorithms.

    Only options of selected plugins are looked at, so that the rest stay unread.
    """
    selected = {option.group for option, _ in config.items()}
    chosen = config.get(PluginOptions)
    policy_loss = _bare(chosen.loss_type) == "policy_loss"
    if PolicyLossOptions in selected and policy_loss:
        yield from _policy_loss(config.get(PolicyLossOptions))
    if ValueLossOptions in selected and not config.get(ValueLossOptions).value_clip > 0:
        clip = config.get(ValueLossOptions).value_clip
        yield _error("M271", f"--value-clip is {clip:g}", why="values could not move", fix="choose more than 0")
    single = config.get(DataOptions).n_samples_per_prompt == 1
    if single and _bare(chosen.dynamic_sampling_filter_path) == "nonzero_std":
        yield _error(
            "M234",
            "filter nonzero_std with --n-samples-per-prompt 1 drops every group",
            why="the rewards of one sample do not differ",
            fix="sample more responses per prompt, or take the filter out",
        )
    grpo = policy_loss and _bare(chosen.advantage_estimator) == "grpo"
    if single and grpo and not config.get(GroupRewardOptions).disable_rewards_normalization:
        yield _error(
            "M235",
            "advantage grpo with --n-samples-per-prompt 1 makes every reward 0",
            why="the mean of a group of one is its own reward",
            fix="set --n-samples-per-prompt to 2 or more, or --disable-rewards-normalization",
        )


def _policy_loss(options: PolicyLossOptions) -> Iterator[UsageError]:
    if not 0 <= options.eps_clip <= 1:
        yield _error("M230", f"--eps-clip is {options.eps_clip}", why="the lower clip is 1 minus it", fix="choose 0 to 1")
    if options.eps_clip_high is not None and not 0 <= options.eps_clip_high < math.inf:
        yield _error(
            "M230", f"--eps-clip-high is {options.eps_clip_high}", why="the upper clip is 1 plus it", fix="choose 0 or more"
        )
    if options.eps_clip_c is not None and not 1 < options.eps_clip_c < math.inf:
        yield _error(
            "M231",
            f"--eps-clip-c is {options.eps_clip_c}",
            why="at 1 or less the dual clip would cut the loss of tokens whose probability did not change",
            fix="choose more than 1, such as 3, or leave it out",
        )
    if not options.use_kl_loss:
        for flag, idle in (("--kl-loss-coef", options.kl_loss_coef == 0), ("--use-unbiased-kl", not options.use_unbiased_kl)):
            if not idle:
                yield _error(
                    "M232", f"{flag} has no effect", why="no KL term is in the loss", fix=f"add --use-kl-loss, or leave {flag} out"
                )
    if not 0 <= options.kl_loss_coef < math.inf:
        yield _error(
            "M233",
            f"--kl-loss-coef is {options.kl_loss_coef}",
            why="it would push the policy away from the reference",
            fix="choose 0 or more",
        )
    if not math.isfinite(options.entropy_coef):
        yield _error("M233", f"--entropy-coef is {options.entropy_coef}", fix="choose a finite number")


def _bare(name: str | None) -> str | None:
    """The plugin's name without the distribution in front, of ``dist:name``."""
    return name.rpartition(":")[2] if name else None


def _error(code: str, what: str, *, why: str = "", fix: str) -> UsageError:
    owner = f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    return UsageError(code, what, owner=owner, why=why, fix=fix)
