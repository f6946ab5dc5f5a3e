"""Halves of a run, files of rollouts and training data, profiles and memory records."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from miles_core.config import CheckpointOptions, ClusterOptions, DataOptions, DebugOptions, EvaluationOptions, SamplingOptions
from miles_core.debug.memory import memray_missing
from miles_core.debug.paths import fields_of, fill
from miles_core.runtime.checks.report import OWNER, Report
from miles_core.runtime.plan import BatchPlan

FILES = {"save_debug_rollout_data": {"rollout_id"}, "save_debug_train_data": {"rollout_id", "rank"}}
"""Names that a path must have."""


def check_debug(report: Report) -> None:
    """Derive what the options mean for the rest of the run. Comes before every other check."""
    options = report.peek(DebugOptions)
    if options.load_debug_rollout_data is not None:
        report.derive(DebugOptions, debug_train_only=True)
    if report.peek(DebugOptions).debug_train_only:
        _train_only(report)
    if options.debug_rollout_only:
        _rollout_only(report)
    if options.dump_details is not None:
        folder = Path(options.dump_details)
        paths = {
            "save_debug_rollout_data": "rollout_data/{rollout_id}.npz",
            "save_debug_train_data": "train_data/{rollout_id}_{rank}.npz",
        }
        wanted = {name: f"{_literal(folder)}/{tail}" for name, tail in paths.items() if getattr(options, name) is None}
        report.derive(DebugOptions, **wanted)
    for name, needed in FILES.items():
        _template(report, name, needed, needed)
    _template(report, "load_debug_rollout_data", set(), {"rollout_id"})
    _profiler(report)
    _memory(report)
    if options.load_debug_rollout_data is None:
        report_unused(report, ["load_debug_rollout_data_subsample"], "--load-debug-rollout-data is not given")
    report.use(DebugOptions, "debug_rollout_only", "debug_train_only", "dump_details")


def check_saved_rollouts(report: Report, batch: BatchPlan | None, first: int) -> None:
    """Every file of ``--load-debug-rollout-data`` is there, from rollout ``first`` on."""
    template = report.peek(DebugOptions).load_debug_rollout_data
    if template is None or batch is None or any(error.code == "M371" for error in report.errors):
        return
    wanted = [fill(template, rollout_id=rollout_id) for rollout_id in range(first, batch.num_rollout)]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        said = report.said(DebugOptions, "load_debug_rollout_data")
        why = f"there is no file {missing[0]}" + (f", and {len(missing) - 1} more are missing" if len(missing) > 1 else "")
        report.error("M372", f"{said} does not have {batch.num_rollout} rollouts", why=why, fix="check the path and --num-rollout")


def report_unused(report: Report, names: list[str], why: str) -> None:
    """Warn of options of this group that the user set and nothing will use."""
    for name in names:
        if report.chosen(DebugOptions, name):
            report.warn(f"{report.said(DebugOptions, name)} has no effect: {why}")


def _train_only(report: Report) -> None:
    options = report.peek(DebugOptions)
    flag = "load_debug_rollout_data" if options.load_debug_rollout_data is not None else "debug_train_only"
    said = report.said(DebugOptions, flag)
    if options.debug_rollout_only:
        other = report.said(DebugOptions, "debug_rollout_only")
        report.error(
            "M370", f"{said} does not go with {other}", why="nothing would be left of the run", fix="leave one of them out"
        )
    own = report.peek(SamplingOptions)
    custom = getattr(own, "rollout_function_path", None) is not None
    if options.load_debug_rollout_data is None and not report.supervised and not custom and report.selection.loss is not None:
        why = "there are no engines to generate with"
        fix = "give --load-debug-rollout-data, or a loss that trains on responses from the data"
        report.error("M375", f"{said} has nothing to train on", why=why, fix=fix)
    if report.evaluates:
        interval = report.said(EvaluationOptions, "eval_interval")
        report.warn(f"{interval} has no effect: {said} leaves out the engines")
        report.derive(EvaluationOptions, eval_interval=None)
    if options.load_debug_rollout_data is not None and report.peek(DataOptions).num_rollout is None:
        report.error("M208", "--num-rollout is missing", why=f"{said} does not say how many rollouts there are", fix="give it")


def _rollout_only(report: Report) -> None:
    said = report.said(DebugOptions, "debug_rollout_only")
    if report.supervised:
        why = "responses come from the data, so that nothing is generated"
        report.error("M370", f"{said} does not go with a supervised loss", why=why, fix="leave one of them out")
    for name in ("save", "save_hf", "load"):
        if getattr(report.peek(CheckpointOptions), name) is not None:
            report.warn(f"{report.said(CheckpointOptions, name)} has no effect: {said} leaves out the trainers")
            report.derive(CheckpointOptions, **{name: None})
    report_unused(
        report, ["save_debug_train_data", "record_memory_history", "use_pytorch_profiler"], f"{said} leaves out the trainers"
    )
    cluster = report.peek(ClusterOptions)
    engines = cluster.rollout_num_gpus
    if cluster.colocate or engines is None:
        engines = max(cluster.actor_num_nodes, 1) * max(cluster.actor_num_gpus_per_node, 1)
    report.derive(
        ClusterOptions, colocate=False, offload=False, offload_train=False, offload_rollout=False, rollout_num_gpus=engines
    )


def _template(report: Report, name: str, needed: set[str], known: set[str]) -> None:
    text = getattr(report.peek(DebugOptions), name)
    if text is None:
        return
    braces = ", ".join(f"{{{field}}}" for field in sorted(known, reverse=True))
    try:
        found = fields_of(text)
        fill(text, **dict.fromkeys(known, 0))
        why = "" if needed <= found else f"rollouts or ranks would share one file without {braces}"
    except (ValueError, KeyError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        said = report.said(DebugOptions, name)
        report.error("M371", f"{said} is no usable path", why=why, fix=f"write {braces} where the numbers go, and {{{{ for a brace")


def _literal(folder: Path) -> str:
    return str(folder).replace("{", "{{").replace("}", "}}")


def _profiler(report: Report) -> None:
    options = report.peek(DebugOptions)
    if report.chosen(DebugOptions, "profile_target") and not report.chosen(DebugOptions, "use_pytorch_profiler"):
        report.derive(DebugOptions, use_pytorch_profiler=True)
    if not report.peek(DebugOptions).use_pytorch_profiler:
        names = ["profile_target", "profile_step_start", "profile_step_end", "profile_dir"]
        report_unused(report, names, "--use-pytorch-profiler is not given")
        return
    targets = set(options.profile_target)
    if not targets or ("train_overall" in targets and len(targets) > 1):
        said = f"--profile-target {' '.join(options.profile_target)}"
        why = "train_overall covers the others, and PyTorch records one trace at a time" if targets else "it names nothing"
        report.error("M373", f"{said} cannot be profiled", why=why, fix="take train_overall alone, or the others")
    start, end = options.profile_step_start, options.profile_step_end
    if not 0 <= start < end:
        said, other = (report.said(DebugOptions, name) for name in ("profile_step_start", "profile_step_end"))
        report.error("M373", f"{said} and {other} are no range", why="0 <= start < end", fix="give a start below the end")
        return
    rollouts = report.peek(DataOptions).num_rollout
    if rollouts is not None and start >= rollouts:
        said = report.said(DebugOptions, "profile_step_start")
        report.warn(f"nothing is profiled: {said} is not below --num-rollout {rollouts}")


def _memory(report: Report) -> None:
    switches = ("memory_snapshot_dir", "memory_recorder")
    if any(report.chosen(DebugOptions, name) for name in switches) and not report.chosen(DebugOptions, "record_memory_history"):
        report.derive(DebugOptions, record_memory_history=True)
    options = report.peek(DebugOptions)
    if not options.record_memory_history:
        names = ["memory_snapshot_path", "memory_snapshot_num_steps", *switches]
        report_unused(report, names, "--record-memory-history is not given")
    elif options.memory_recorder == "memray" and importlib.util.find_spec("memray") is None:
        error = memray_missing()
        report.error("M374", error.what, owner=OWNER, why=error.why, fix=error.fix)


def check_memory_device(report: Report, device: str) -> None:
    """Say that the torch recorder finds nothing on the CPU."""
    options = report.peek(DebugOptions)
    if device == "cpu" and options.record_memory_history and options.memory_recorder == "torch":
        said = report.said(DebugOptions, "memory_recorder")
        report.warn(f"{said} records nothing on the CPU: it records device memory; --memory-recorder memray records the host's")
