"""Batch arithmetic: ``rollout_batch_size`` prompts x ``n`` samples = steps x ``global_batch_size``."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.config import CriticOptions, DataOptions, EvaluationOptions, TrainingOptions
from miles_core.runtime.checks.critic import critic_ranks
from miles_core.runtime.checks.report import Report, flag_of
from miles_core.runtime.plan import BatchPlan

MODEL_PARALLEL = ("--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size")
"""Flags of backends whose product is the number of ranks that work on the same rows."""


@dataclass(frozen=True)
class Steps:
    """How one rollout splits into optimizer steps."""

    prompts: int
    n_samples: int
    steps: int
    global_batch_size: int


def check_batch(report: Report, trainers: int, prompt_rows: int | None) -> BatchPlan | None:
    """Batch sizes, steps and the number of rollouts.

    Args:
        trainers: training ranks.
        prompt_rows: rows of the prompt data, before prompts that are too long are dropped; None when unknown.
    """
    _training(report)
    steps = _steps(report)
    if steps is not None:
        for ranks in sorted({trainers, critic_ranks(report) or trainers}):
            _ranks(report, steps, ranks)
    rollouts = _rollouts(report, prompt_rows)
    if steps is None or rollouts is None:
        return None
    report.use(
        DataOptions,
        *("num_rollout", "num_epoch", "rollout_batch_size", "n_samples_per_prompt", "global_batch_size", "num_steps_per_rollout"),
        *("use_dynamic_global_batch_size", "disable_rollout_trim_samples"),
    )
    per_epoch = prompt_rows // steps.prompts if prompt_rows is not None else None
    return BatchPlan(
        rollout_batch_size=steps.prompts,
        n_samples=steps.n_samples,
        global_batch_size=steps.global_batch_size,
        steps_per_rollout=steps.steps,
        num_rollout=rollouts,
        rollouts_per_epoch=per_epoch or None,
        critic_only_rollouts=report.peek(CriticOptions).num_critic_only_steps if report.has_critic else 0,
    )


def _steps(report: Report) -> Steps | None:
    data = report.peek(DataOptions)
    n = data.n_samples_per_prompt
    if report.supervised and n != 1:
        if report.chosen(DataOptions, "n_samples_per_prompt"):
            report.warn(f"{report.said(DataOptions, 'n_samples_per_prompt')} counts as 1: responses come from the data")
        n = 1
        report.derive(DataOptions, n_samples_per_prompt=1)
    prompts = data.rollout_batch_size
    if prompts is None:
        report.error("M208", "--rollout-batch-size is missing", fix="give the number of prompts in a rollout")
        return None
    if prompts < 1 or n < 1 or any(v is not None and v < 1 for v in (data.global_batch_size, data.num_steps_per_rollout)):
        # The table of ranges has reported it; arithmetic with such numbers would only repeat it.
        return None
    total = prompts * n
    product = f"--rollout-batch-size {prompts} x --n-samples-per-prompt {n} = {total} samples"
    if data.num_steps_per_rollout is not None:
        return _by_steps(report, data, prompts, n, product)
    size = total if data.global_batch_size is None else data.global_batch_size
    if data.use_dynamic_global_batch_size and size != total:
        _dynamic(report, "global_batch_size", f"set --global-batch-size {total}")
        return None
    if data.disable_rollout_trim_samples and size <= total:
        report.derive(DataOptions, global_batch_size=size, num_steps_per_rollout=total // size)
        return Steps(prompts, n, total // size, size)
    if total % size:
        said = report.said(DataOptions, "global_batch_size")
        fix = f"take {_nearest(total, size)} for --global-batch-size, or {_multiples(size, n)} for --rollout-batch-size"
        report.error("M210", f"{said} does not divide a rollout", why=f"{product}", fix=fix)
        return None
    report.derive(DataOptions, global_batch_size=size, num_steps_per_rollout=total // size)
    return Steps(prompts, n, total // size, size)


def _by_steps(report: Report, data: DataOptions, prompts: int, n: int, product: str) -> Steps | None:
    total, steps = prompts * n, data.num_steps_per_rollout
    assert steps is not None
    said = report.said(DataOptions, "num_steps_per_rollout")
    if data.use_dynamic_global_batch_size and steps != 1:
        _dynamic(report, "num_steps_per_rollout", "set --num-steps-per-rollout 1")
        return None
    if total % steps:
        report.error("M210", f"{said} does not divide a rollout", why=product, fix=f"take {_nearest(total, steps)}")
        return None
    if data.global_batch_size not in (None, total // steps):
        why = f"{product}, in {steps} steps of {total // steps}"
        fix = f"leave one of the two out, or set --global-batch-size {total // steps}"
        report.error("M210", f"{report.said(DataOptions, 'global_batch_size')} contradicts {said}", why=why, fix=fix)
        return None
    report.derive(DataOptions, global_batch_size=total // steps)
    return Steps(prompts, n, steps, total // steps)


def _dynamic(report: Report, name: str, fix: str) -> None:
    said, other = (report.said(DataOptions, each) for each in ("use_dynamic_global_batch_size", name))
    why = "it makes one step of all samples that a rollout has"
    report.error("M327", f"{said} does not go with {other}", why=why, fix=f"leave one of them out, or {fix}")


def _ranks(report: Report, steps: Steps, trainers: int) -> None:
    shared = 1
    for option, value in report.config.items():
        if option.flag in MODEL_PARALLEL and isinstance(value.value, int) and value.value > 0:
            shared *= value.value
    if trainers % shared:
        what = f"{trainers} training ranks are no multiple of {shared}"
        report.error("M211", what, why="that is the product of the model-parallel sizes", fix="change one of them")
        return
    ranks = trainers // shared
    if steps.global_batch_size % ranks:
        total = steps.prompts * steps.n_samples
        legal = [size for size in _divisors(total) if size % ranks == 0]
        size = steps.global_batch_size
        near = sorted(legal, key=lambda d: (abs(d - size), d))[:2]
        take = f"take {_alternatives(near)} for --global-batch-size, or" if near else "take"
        report.error(
            "M211",
            f"an optimizer step of {size} samples does not divide over {ranks} data-parallel ranks",
            why=f"{size} % {ranks} = {size % ranks}",
            fix=f"{take} a number of ranks that divides {size}: {_nearest(size, ranks)}",
        )


def _rollouts(report: Report, rows: int | None) -> int | None:
    data = report.peek(DataOptions)
    if data.num_rollout is not None:
        if data.num_epoch is not None:
            said, other = (report.said(DataOptions, name) for name in ("num_epoch", "num_rollout"))
            report.warn(f"{said} is not used: {other} says how long the run is")
        least = 0 if report.evaluates else 1
        if data.num_rollout < least:
            why = "0 is for runs that only evaluate, and --eval-interval is not given" if least else ""
            report.error("M209", f"{report.said(DataOptions, 'num_rollout')} is too small", why=why, fix=f"give {least} or more")
            return None
        return data.num_rollout
    if data.num_epoch is None:
        report.error("M208", "--num-rollout is missing", why="nothing says how long the run is", fix="give it, or --num-epoch")
        return None
    prompts = data.rollout_batch_size
    if rows is None or not prompts or prompts < 1 or data.num_epoch < 1:
        return None
    rollouts = (data.num_epoch * rows) // prompts
    if rollouts < 1:
        report.error(
            "M212",
            f"{report.said(DataOptions, 'num_epoch')} makes no rollout",
            why=f"{data.num_epoch} x {rows} prompts are fewer than one rollout of {prompts}",
            fix=f"take --num-epoch {-(-prompts // rows)}, or at most {rows * data.num_epoch} for --rollout-batch-size",
        )
        return None
    report.derive(DataOptions, num_rollout=rollouts)
    return rollouts


def _training(report: Report) -> None:
    training = report.peek(TrainingOptions)
    if training.use_dynamic_batch_size:
        flag = report.said(TrainingOptions, "use_dynamic_batch_size")
        if training.max_tokens_per_gpu is None:
            report.error("M213", f"{flag} needs --max-tokens-per-gpu", fix="give the most tokens of a micro-batch")
        if training.qkv_format == "bshd":
            said = report.said(TrainingOptions, "qkv_format")
            fix = f"leave {flag_of(TrainingOptions, 'use_dynamic_batch_size')} out, or take --qkv-format thd"
            report.error("M214", f"{said} does not go with {flag}", why="padded batches count samples, not tokens", fix=fix)
    interval = report.peek(EvaluationOptions).eval_interval
    rollouts = report.peek(DataOptions).num_rollout
    if interval is not None and rollouts is not None and 0 < rollouts < interval:
        report.warn(f"{report.said(EvaluationOptions, 'eval_interval')} is longer than the run: it is evaluated at its ends only")


def _divisors(number: int) -> list[int]:
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def _nearest(total: int, wanted: int) -> str:
    """The divisors of ``total`` next to ``wanted``, in words."""
    legal = _divisors(total)
    below = [d for d in legal if d < wanted][-1:]
    above = [d for d in legal if d > wanted][:1]
    return _alternatives([*below, *above])


def _multiples(size: int, n: int) -> str:
    """The smallest numbers of prompts that fill whole steps of ``size`` samples."""
    import math

    unit = size // math.gcd(size, n)
    return f"a multiple of {unit}"


def _alternatives(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
