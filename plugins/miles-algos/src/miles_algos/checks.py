"""Contradictory options of the selected algorithms. Standard library and miles_core only."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator
from typing import Any

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
    RejectionOptions,
    RewardKlOptions,
    SoftGateOptions,
    TisOptions,
    ValueLossOptions,
)
from miles_core.config import AlgorithmOptions, DataOptions, PluginOptions, RewardOptions
from miles_core.errors import UsageError
from miles_core.options import Config, Source

DISTRIBUTION = "miles-algos"
GROUP_RELATIVE = ("grpo", "gspo", "rloo", "reinforce_plus_plus_baseline")
WHITENED = ("reinforce_plus_plus", "reinforce_plus_plus_baseline")
POLICY_LOSSES = ("policy_loss", "gspo_loss", "cispo", "sapo")
WIDE_FOR_SEQUENCES = 0.05
"""``--eps-clip`` from which on the ratio of a whole response practically never leaves its range."""


def problems(config: Config) -> Iterator[UsageError]:
    """Everything that is wrong with the options of the selected algorithms.

    Only options of selected plugins are looked at, so that the rest stay unread.
    """
    selected = {option.group for option, _ in config.items()}
    chosen = config.get(PluginOptions)
    loss, estimator = _bare(chosen.loss_type), _bare(chosen.advantage_estimator)
    for group, checks in RANGES.items():
        if group in selected:
            options: Any = config.get(group)
            for name, flag, legal, code, why, fix in checks:
                value = getattr(options, name)
                if value is not None and not legal(value):
                    yield _error(code, f"{flag} is {value:g}", why=why, fix=fix)
    if loss == "custom_loss" and config.get(CustomLossOptions).custom_loss_function_path is None:
        yield _error(
            "M262",
            "--loss-type custom_loss has no function",
            why="the loss is what --custom-loss-function-path names",
            fix="give that option, or another loss",
        )
    if ValueLossOptions in selected and not config.get(ValueLossOptions).value_clip > 0:
        clip = config.get(ValueLossOptions).value_clip
        yield _error("M271", f"--value-clip is {clip:g}", why="values could not move", fix="choose more than 0")
    yield from _kl(config, selected)
    if TisOptions in selected:
        yield from _corrections(config)
    if (
        DistillationOptions in selected
        and not config.get(DistillationOptions).use_opd
        and _given(config, DistillationOptions, "opd_kl_coef")
    ):
        yield _idle("--opd-kl-coef", "no teacher is asked", "--use-opd")
    if _takes_advantages(config, loss):
        yield from _groups(config, chosen, estimator)
        yield from _estimator(config, selected, loss, estimator)


def warnings(config: Config) -> Iterator[str]:
    """What is allowed and hardly meant, a line each."""
    selected = {option.group for option, _ in config.items()}
    if ClipOptions in selected and _bare(config.get(PluginOptions).loss_type) == "gspo_loss":
        clip = config.get(ClipOptions).eps_clip
        if clip >= WIDE_FOR_SEQUENCES:
            yield (
                f"--eps-clip {clip:g} hardly ever clips with loss gspo_loss, whose ratio is the mean of a whole response; "
                "--algo gspo takes 0.0003 and 0.0004"
            )


def _takes_advantages(config: Config, loss: str | None) -> bool:
    """Whether the run trains on advantages. Of others' losses that is known only once an estimator is named."""
    if loss == "sft_loss" or config.get(AlgorithmOptions).disable_compute_advantages_and_returns:
        return False
    named = config.value(PluginOptions, "advantage_estimator").source is not Source.DEFAULT
    return loss in POLICY_LOSSES or named


def _groups(config: Config, chosen: PluginOptions, estimator: str | None) -> Iterator[UsageError]:
    single = config.get(DataOptions).n_samples_per_prompt == 1
    filtered = _bare(chosen.dynamic_sampling_filter_path) == "nonzero_std"
    ungraded = estimator == "on_policy_distillation" and chosen.rm_type is None and config.get(RewardOptions).custom_rm_path is None
    if filtered and ungraded:
        yield _error(
            "M254",
            "filter nonzero_std without a reward drops every group",
            why="no response is graded",
            fix="name a reward by --rm-type, or take the filter out",
        )
    elif single and filtered:
        yield _error(
            "M234",
            "filter nonzero_std with --n-samples-per-prompt 1 drops every group",
            why="the rewards of one sample do not differ",
            fix="sample more responses per prompt, or take the filter out",
        )
    if single and estimator in GROUP_RELATIVE and not config.get(GroupRewardOptions).disable_rewards_normalization:
        yield _error(
            "M235",
            f"advantage {estimator} with --n-samples-per-prompt 1 makes every reward 0",
            why="the mean of a group of one is its own reward",
            fix="set --n-samples-per-prompt to 2 or more, or --disable-rewards-normalization",
        )


def _estimator(config: Config, selected: set[type], loss: str | None, estimator: str | None) -> Iterator[UsageError]:
    if estimator in WHITENED and not config.get(AlgorithmOptions).normalize_advantages:
        yield _error(
            "M250",
            f"advantage {estimator} needs --normalize-advantages",
            why="without whitening every token of a response with a positive reward is reinforced, however bad it is",
            fix=f"add it, or take --algo {estimator}, which sets it",
        )
    if estimator == "gspo" and loss in POLICY_LOSSES and loss != "gspo_loss":
        yield _error(
            "M253",
            f"advantage gspo with loss {loss} is grpo",
            why="the ratio of whole responses, which is GSPO, is in gspo_loss",
            fix="take --algo gspo or --loss-type gspo_loss, or name the estimator grpo",
        )
    if (
        GroupStdOptions in selected
        and config.get(GroupRewardOptions).disable_rewards_normalization
        and _given(config, GroupStdOptions, "disable_grpo_std_normalization")
    ):
        why = "--disable-rewards-normalization leaves rewards as they are"
        yield _idle("--disable-grpo-std-normalization", why, None)


def _kl(config: Config, selected: set[type]) -> Iterator[UsageError]:
    in_reward = RewardKlOptions in selected and config.get(RewardKlOptions).kl_coef != 0
    in_loss = KlLossOptions in selected and config.get(KlLossOptions).use_kl_loss
    if KlLossOptions in selected and not in_loss:
        for flag, name in (("--kl-loss-coef", "kl_loss_coef"), ("--use-unbiased-kl", "use_unbiased_kl")):
            if _given(config, KlLossOptions, name):
                yield _idle(flag, "no KL term is in the loss", "--use-kl-loss")
    if KlOptions in selected and not in_loss and not in_reward and _given(config, KlOptions, "kl_loss_type"):
        needed = "--use-kl-loss or --kl-coef" if RewardKlOptions in selected else "--use-kl-loss"
        yield _idle("--kl-loss-type", "no KL divergence is estimated", needed)
    if in_reward and in_loss and config.get(KlLossOptions).kl_loss_coef != 0:
        coefs = (RewardKlOptions, "--kl-coef", "kl_coef"), (KlLossOptions, "--kl-loss-coef", "kl_loss_coef")
        values = [(flag, config.value(group, name)) for group, flag, name in coefs]
        said = " and ".join(f"{flag} {value.value:g}" + (f" ({value.place})" if value.place else "") for flag, value in values)
        yield _error("M251", f"{said} do not go together", why="the policy would be held twice", fix="set one of them to 0")
    shared = config.get(AlgorithmOptions)
    ours = KlLossOptions in selected and _bare(config.get(PluginOptions).advantage_estimator) in ESTIMATORS
    if ours and not in_reward and not in_loss:
        needed = "--use-kl-loss or --kl-coef" if RewardKlOptions in selected else "--use-kl-loss"
        for flag, value in (("--ref-load", shared.ref_load), ("--ref-update-interval", shared.ref_update_interval)):
            if value is not None:
                yield _idle(flag, "nothing asks a reference model", needed)


def _corrections(config: Config) -> Iterator[UsageError]:
    tis, rejection, opsm = config.get(TisOptions), config.get(RejectionOptions), config.get(OpsmOptions)
    custom = tis.custom_tis_function_path is not None
    corrected = tis.use_tis or custom or rejection.use_rs
    if corrected and config.get(AlgorithmOptions).use_rollout_logprobs:
        flag = "--use-tis" if tis.use_tis else "--custom-tis-function-path" if custom else "--use-rs"
        yield _error(
            "M260",
            f"{flag} does not go with --use-rollout-logprobs",
            why="the trainer's own log-probs are not computed, so that there is nothing to compare the engine's with",
            fix="leave one of them out",
        )
    # A function of the user's may read the bounds, from ``args``; whether it did is known after the run.
    groups = ((tis, tis.use_tis or custom, "--use-tis", ("tis_clip", "tis_clip_low", "tis_level", "tis_mode")),
              (rejection, rejection.use_rs, "--use-rs", ("rs_level", "rs_upper_bound", "rs_lower_bound", "rs_veto_threshold")),
              (opsm, opsm.use_opsm, "--use-opsm", ("opsm_delta",)))  # fmt: skip
    for options, used, switch, names in groups:
        if not used:
            for name in names:
                if getattr(options, name) != getattr(type(options)(), name):
                    yield _idle(f"--{name.replace('_', '-')}", f"{switch} is not given", switch)
    if tis.tis_clip_low > tis.tis_clip:
        yield _error("M261", f"--tis-clip-low {tis.tis_clip_low:g} is above --tis-clip {tis.tis_clip:g}", fix="swap them")
    low, high = rejection.rs_lower_bound, rejection.rs_upper_bound
    if low is not None and low > high:
        yield _error("M261", f"--rs-lower-bound {low:g} is above --rs-upper-bound {high:g}", fix="swap them")
    if low is None and 0 < high < 1:
        why = "the lower bound, which is not given, is 1 divided by it"
        yield _error("M261", f"--rs-upper-bound {high:g} is below 1", why=why, fix="choose 1 or more, or give --rs-lower-bound")


def _share(value: float) -> bool:
    return 0 <= value <= 1


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


ESTIMATORS = (*GROUP_RELATIVE, "reinforce_plus_plus", "ppo", "on_policy_distillation")
RANGES: dict[type, tuple[tuple[str, str, Any, str, str, str], ...]] = {
    ClipOptions: (
        ("eps_clip", "--eps-clip", _share, "M230", "the lower clip is 1 minus it", "choose 0 to 1"),
        ("eps_clip_high", "--eps-clip-high", _not_negative, "M230", "the upper clip is 1 plus it", "choose 0 or more"),
    ),
    DualClipOptions: (
        (
            "eps_clip_c",
            "--eps-clip-c",
            lambda value: 1 < value < math.inf,
            "M231",
            "at 1 or less the dual clip would cut the loss of tokens whose probability did not change",
            "choose more than 1, such as 3, or leave it out",
        ),
    ),
    KlLossOptions: (
        (
            *("kl_loss_coef", "--kl-loss-coef", _not_negative),
            *("M233", "it would push the policy away from the reference", "choose 0 or more"),
        ),
    ),
    EntropyOptions: (("entropy_coef", "--entropy-coef", math.isfinite, "M233", "", "choose a finite number"),),
    RewardKlOptions: (
        ("kl_coef", "--kl-coef", _not_negative, "M233", "it would push the policy away from the reference", "choose 0 or more"),
    ),
    DiscountOptions: (("gamma", "--gamma", _share, "M252", "it is a discount", "choose 0 to 1"),),
    GaeOptions: (("lambd", "--lambd", _share, "M252", "it weights later differences", "choose 0 to 1"),),
    DistillationOptions: (
        (
            "opd_kl_coef",
            "--opd-kl-coef",
            _not_negative,
            "M252",
            "it would push away from the teacher",
            "choose 0 or more",
        ),
    ),
    SoftGateOptions: (
        ("sapo_tau_pos", "--sapo-tau-pos", _positive, "M261", "the gate divides by it", "choose more than 0"),
        ("sapo_tau_neg", "--sapo-tau-neg", _positive, "M261", "the gate divides by it", "choose more than 0"),
    ),
    TisOptions: (
        ("tis_clip", "--tis-clip", _positive, "M261", "it bounds a ratio", "choose more than 0"),
        ("tis_clip_low", "--tis-clip-low", _not_negative, "M261", "it bounds a ratio", "choose 0 or more"),
    ),
    RejectionOptions: (
        ("rs_upper_bound", "--rs-upper-bound", _positive, "M261", "it bounds a ratio", "choose more than 0"),
        ("rs_lower_bound", "--rs-lower-bound", _not_negative, "M261", "it bounds a ratio", "choose 0 or more"),
        ("rs_veto_threshold", "--rs-veto-threshold", _not_negative, "M261", "it bounds a ratio", "choose 0 or more"),
    ),
    OpsmOptions: (("opsm_delta", "--opsm-delta", math.isfinite, "M261", "it is a threshold", "choose a finite number"),),
}
"""Legal values: field, flag, test, code, why another is none, and what to do. Tested when the value is not None."""


def _bare(name: str | None) -> str | None:
    """The plugin's name without the distribution in front, of ``dist:name``."""
    return name.rpartition(":")[2] if name else None


def _given(config: Config, group: type, name: str) -> bool:
    """Whether the user, and not a recipe, set an option to another value than its default."""
    return config.chosen(group, name) and config.value(group, name).value != getattr(group(), name)


def _idle(flag: str, why: str, switch: str | None) -> UsageError:
    return _error(
        "M232", f"{flag} has no effect", why=why, fix=f"add {switch}, or leave {flag} out" if switch else f"leave {flag} out"
    )


def _error(code: str, what: str, *, why: str = "", fix: str) -> UsageError:
    owner = f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    return UsageError(code, what, owner=owner, why=why, fix=fix)
