"""From resolved options to the plan of a run: every check, all mistakes together, before any process starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from miles_core.config import (
    AlgorithmOptions,
    ClusterOptions,
    DebugOptions,
    EvaluationOptions,
    ExternalOptions,
    LoggingOptions,
    PluginOptions,
    RewardOptions,
    RolloutOptions,
    RouterOptions,
    RunOptions,
    SamplingOptions,
)
from miles_core.errors import MilesError, PluginError, UsageErrors
from miles_core.options import Config
from miles_core.options.resolve import Resolved
from miles_core.plugins import PluginRef, events
from miles_core.runtime.checks import Report
from miles_core.runtime.checks.algorithm import check_algorithm
from miles_core.runtime.checks.batch import check_batch
from miles_core.runtime.checks.checkpoint import check_checkpoint
from miles_core.runtime.checks.critic import check_critic
from miles_core.runtime.checks.data import check_prompts
from miles_core.runtime.checks.debug import check_debug, check_memory_device, check_saved_rollouts
from miles_core.runtime.checks.evaluation import check_evaluation
from miles_core.runtime.checks.external import check_external
from miles_core.runtime.checks.fault_tolerance import check_fault_tolerance
from miles_core.runtime.checks.loops import check_loops
from miles_core.runtime.checks.placement import Machine, check_placement
from miles_core.runtime.checks.ranges import check_partners, check_ranges
from miles_core.runtime.checks.relevance import check_relevance
from miles_core.runtime.checks.resume import check_resume
from miles_core.runtime.checks.router import check_router, router_of
from miles_core.runtime.checks.routing import check_routing
from miles_core.runtime.checks.sampling import check_sampling
from miles_core.runtime.checks.saving import check_saving
from miles_core.runtime.checks.teacher import check_teacher
from miles_core.runtime.checks.true_on_policy import check_true_on_policy
from miles_core.runtime.plan import BatchPlan, PlacementPlan, PluginPlan, RunPlan


@dataclass
class Planned:
    """The outcome of the validation pass.

    Attributes:
        config: the options with everything derived.
        plan: None when there are errors.
        errors, warnings: of resolving and planning together.
        prompt_rows: rows of the prompt data before prompts that are too long are dropped, or None.
        eval_rows: the same of each evaluation set.
    """

    config: Config
    plan: RunPlan | None
    errors: list[MilesError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    prompt_rows: int | None = None
    eval_rows: Mapping[str, int] = field(default_factory=dict)

    def require(self) -> RunPlan:
        """The plan.

        Raises:
            UsageErrors: there are errors.
        """
        if self.plan is None:
            raise UsageErrors(self.errors)
        return self.plan


def plan_run(resolved: Resolved, machine: Machine | None = None) -> Planned:
    """Check everything and plan the run.

    Reading an option for a check does not count as reading it; what goes into the plan does.

    Args:
        resolved: its errors are kept, and everything else is checked all the same.
        machine: what the run may take; None looks at this one.
    """
    report = Report(resolved.config, resolved.selection)
    report.errors += resolved.errors
    report.warnings += resolved.warnings
    check_debug(report)
    check_ranges(report)
    check_partners(report)
    check_algorithm(report)
    _check_reward(report)
    placement, trainers = check_placement(report, Machine.here() if machine is None else machine)
    check_memory_device(report, report.peek(ClusterOptions).device)
    check_relevance(report)
    checkpoint = check_checkpoint(report)
    check_sampling(report)
    check_loops(report, placement)
    check_external(report, placement)
    check_teacher(report)
    check_true_on_policy(report)
    check_fault_tolerance(report)
    check_router(report, placement)
    check_routing(report)
    check_saving(report)
    replays = report.peek(DebugOptions).load_debug_rollout_data is not None
    prompt_rows = None if replays else check_prompts(report)
    eval_rows = check_evaluation(report)
    batch = check_batch(report, trainers, prompt_rows)
    state = check_resume(report, checkpoint)
    check_saved_rollouts(report, batch, state.rollout_id + 1 if state else 0)
    check_critic(report, state)
    _configure(report, resolved)

    planned = Planned(report.config, None, report.errors, report.warnings, prompt_rows, eval_rows)
    if not report.errors:
        assert placement is not None
        assert batch is not None
        assert checkpoint is not None
        planned.plan = _plan(report, placement, batch, checkpoint, state.path if state else None)
    return planned


def _check_reward(report: Report) -> None:
    if not report.generates or report.selection.reward is not None:
        return
    if report.peek(PluginOptions).rm_type is None and report.peek(RewardOptions).custom_rm_path is None:
        estimator = report.selection.advantage
        if not report.evaluates and report.peek(ExternalOptions).rollout_buffer_url is not None:
            return
        if not report.evaluates and estimator is not None and "reward_free" in estimator.capabilities:
            return
        why = "nothing would grade the responses"
        report.error("M208", "--rm-type is missing", why=why, fix="give the name of a reward plugin, or --custom-rm-path")


def _configure(report: Report, resolved: Resolved) -> None:
    """Let the plugins check the options, with everything derived."""
    try:
        resolved.host.broadcast(events.Configure(report.config.untracked(), report.errors.append, report.warn))
    except PluginError as error:
        report.errors.append(error)


def _plan(report: Report, placement: PlacementPlan, batch: BatchPlan, checkpoint: Path, resume_from: Path | None) -> RunPlan:
    chosen = report.selection
    assert chosen.backend is not None
    assert chosen.loss is not None
    report.use(PluginOptions, *PluginOptions.__dataclass_fields__)
    report.use(RewardOptions, "custom_rm_path", "custom_reward_post_process_path")
    for group in (SamplingOptions, RolloutOptions, EvaluationOptions):
        report.use(group, *(name for name in group.__dataclass_fields__ if name.endswith("_path")))
    report.use(LoggingOptions, "use_wandb", "use_tensorboard")
    report.use(RunOptions, "run_dir")
    without_advantages = report.peek(AlgorithmOptions).disable_compute_advantages_and_returns
    report.use(AlgorithmOptions, "disable_compute_advantages_and_returns")
    router = router_of(report, placement)
    report.use(RouterOptions, "use_miles_router", "miles_router_middleware_paths")
    plugins = PluginPlan(
        backend=chosen.backend,
        loss=chosen.loss,
        engine=chosen.engine if report.generates else None,
        advantage=None if report.supervised or without_advantages else chosen.advantage,
        reward=chosen.reward if report.generates else None,
        filters=() if report.supervised else tuple(chosen.filters),
        functions=dict(chosen.functions),
        loggers=tuple(chosen.loggers),
        hooks=tuple(chosen.hooks),
        algo=chosen.algo,
        critic_loss=chosen.critic_loss,
        middlewares=tuple(chosen.middlewares) if router is not None else (),
        router=router,
        export=_export(report),
    )
    run_dir = report.peek(RunOptions).run_dir
    return RunPlan(
        plugins=plugins,
        batch=batch,
        placement=placement,
        run_dir=(Path(run_dir).expanduser() if run_dir is not None else _fresh_folder(Path("runs"))).absolute(),
        checkpoint=checkpoint.absolute(),
        resume_from=resume_from.absolute() if resume_from is not None else None,
    )


def _export(report: Report) -> PluginRef | None:
    """What the engine's plugin does to weights before they are sent."""
    engine = report.selection.engine
    if engine is None or not report.generates:
        return None
    record = next(plugin.record for plugin in report.selection.loaded if plugin.ref == engine)
    return PluginRef("export", engine.name, engine.distribution, engine.version, record.export) if record.export else None


def _fresh_folder(parent: Path) -> Path:
    name = time.strftime("%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(parent / each for each in names if not (parent / each).exists())
