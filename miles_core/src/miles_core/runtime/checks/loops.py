"""``--loop``, ``--update-weights-interval`` and ``--max-staleness``, against placement, sampling and the algorithm."""

from __future__ import annotations

from miles_core.config import (
    AlgorithmOptions,
    ClusterOptions,
    DebugOptions,
    LoopOptions,
    PluginOptions,
    RolloutOptions,
    SamplingOptions,
    TrainingOptions,
)
from miles_core.runtime.checks.report import Report
from miles_core.runtime.plan import PlacementPlan


def check_loops(report: Report, placement: PlacementPlan | None) -> None:
    """Compare the loop with everything that depends on it. The placement is None where it is wrong already."""
    options = report.peek(LoopOptions)
    if options.loop != "async" and report.chosen(LoopOptions, "max_staleness"):
        report.warn(f"{report.said(LoopOptions, 'max_staleness')} has no effect: only --loop async has samples of several ages")
    if options.loop != "sync":
        _generates_and_trains(report)
    if placement is not None:
        _placement(report, placement)
    if options.loop == "async":
        _continuous(report)
    _old_policy(report)
    off_policy = [name for name, on in (("loop", options.loop != "sync"), ("update_weights_interval", _interval(report) > 1)) if on]
    if off_policy and report.peek(TrainingOptions).true_on_policy_mode and not report.supervised:
        said = report.said(TrainingOptions, "true_on_policy_mode")
        what = f"{report.said(LoopOptions, off_policy[0])} contradicts {said}"
        why = "it trains on tokens of earlier weights"
        report.error("M229", what, why=why, fix="take --loop sync, and publish after every rollout")


def _interval(report: Report) -> int:
    return report.peek(LoopOptions).update_weights_interval


def _generates_and_trains(report: Report) -> None:
    """Where one of the two is not done, there is nothing to do at the same time."""
    debug = report.peek(DebugOptions)
    said = report.said(LoopOptions, "loop")
    fix = "leave --loop out"
    if report.supervised:
        other = report.said(PluginOptions, "loss_type")
        report.error("M228", f"{said} does not go with {other}", why="its responses come from the data", fix=fix)
    for name, on in (
        ("debug_rollout_only", debug.debug_rollout_only),
        ("debug_train_only", debug.debug_train_only),
        ("load_debug_rollout_data", debug.load_debug_rollout_data is not None),
    ):
        if on:
            why = "the run does not both generate and train"
            report.error("M228", f"{said} does not go with {report.said(DebugOptions, name)}", why=why, fix=fix)


def _placement(report: Report, placement: PlacementPlan) -> None:
    loop = report.peek(LoopOptions).loop
    said = report.said(LoopOptions, "loop")
    if loop != "sync" and placement.colocate:
        why = "engines generate while the trainer works, so that each needs devices of its own"
        other = report.said(ClusterOptions, "colocate")
        report.error(
            "M227", f"{said} does not go with {other}", why=why, fix="give --rollout-num-gpus instead, or take --loop sync"
        )
    elif loop != "sync" and placement.offload_rollout:
        why = "engines generate while the trainer works"
        report.error("M227", f"{said} does not go with --offload-rollout", why=why, fix="leave --offload or --offload-rollout out")
    elif _interval(report) > 1 and placement.offload_rollout:
        said = report.said(LoopOptions, "update_weights_interval")
        why = "engines give up their weights while the trainer has the devices, and get them back by a publish alone"
        report.error(
            "M227", f"{said} does not go with --offload-rollout", why=why, fix="add --no-offload-rollout, or publish always"
        )


def _continuous(report: Report) -> None:
    """Options of how a rollout is collected, where none is."""
    said = report.said(LoopOptions, "loop")
    fix = "leave one of them out"
    why = "groups go out all the time, as --max-staleness allows, and none is cut short"
    for name in ("over_sampling_batch_size", "partial_rollout", "mask_offpolicy_in_partial_rollout", "buffer_filter_path"):
        if report.peek(SamplingOptions).__dict__[name] not in (None, False):
            report.error("M228", f"{said} does not go with {report.said(SamplingOptions, name)}", why=why, fix=fix)
    if report.peek(RolloutOptions).rollout_function_path is not None:
        other = report.said(RolloutOptions, "rollout_function_path")
        report.error("M228", f"{said} does not go with {other}", why="that function collects rollouts itself", fix=fix)
    if report.peek(AlgorithmOptions).keep_old_actor:
        report.error(
            "M228",
            f"{said} does not go with {report.said(AlgorithmOptions, 'keep_old_actor')}",
            why="a rollout has tokens of many versions, and no copy has made them all",
            fix="take --use-rollout-logprobs, which are those of the weights that made each token",
        )


def _old_policy(report: Report) -> None:
    """Where samples come from other weights than those that are trained, something should account for it."""
    if report.supervised:
        return
    loop, options = report.peek(LoopOptions), report.peek(AlgorithmOptions)
    behind = loop.loop != "sync" or loop.update_weights_interval > 1
    if options.keep_old_actor:
        said = report.said(AlgorithmOptions, "keep_old_actor")
        if options.use_rollout_logprobs:
            report.warn(f"{said} has no effect: --use-rollout-logprobs takes the engine's log-probs for the old policy's")
        elif not behind:
            report.warn(f"{said} costs a copy of the weights and changes nothing: engines always serve the trainer's weights")
        return
    corrected = options.use_rollout_logprobs or any(o.flag == "--use-tis" and v.value for o, v in report.config.items())
    if behind and not corrected:
        name = "loop" if loop.loop != "sync" else "update_weights_interval"
        report.warn(
            f"{report.said(LoopOptions, name)} trains on samples of earlier weights as if the current ones had made them: consider "
            "--use-rollout-logprobs, --use-tis or --keep-old-actor"
        )
