"""The driver of a run: connects the cluster, starts the processes, runs the loop, and takes everything down again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miles_core.config import CheckpointOptions, ClusterOptions, EvaluationOptions, LoopOptions
from miles_core.errors import MilesError
from miles_core.options.export import unread_report, write_config, write_lock
from miles_core.plugins import create, events
from miles_core.report.lifetime import lifetime
from miles_core.runtime import interruption

if TYPE_CHECKING:
    from miles_core.options import Config
    from miles_core.plugins import PluginHost
    from miles_core.runtime.plan import RunPlan


def run(config: Config, plan: RunPlan, host: PluginHost) -> int:
    """Run to the end.

    Returns:
        The exit code: 0, or 130 when interrupted.

    Raises:
        MilesError: the run failed. Whatever it had started has ended by then.
    """
    from miles_core.loggers.progress import Progress

    run_dir = plan.run_dir
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    for stale in (run_dir / "logs").glob("*.failure.json"):
        stale.unlink()
    write_config(config, run_dir / "config.yaml")
    write_lock(plan, run_dir / "plugins.lock.json")
    progress = Progress(plan.batch.num_rollout)
    try:
        with lifetime(run_dir, plan.batch.num_rollout), interruption.interruptible():
            _run(config, plan, host, progress)
    except KeyboardInterrupt:
        progress.message("interrupted; every process of the run has ended")
        return 130
    except MilesError as error:
        trace = error.data.get("traceback")
        if trace:
            progress.message(f"first failure, in {error.data.get('process')}:\n{trace}")
        raise
    finally:
        progress.close()
    return 0


def _run(config: Config, plan: RunPlan, host: PluginHost, progress: Any) -> None:
    from miles_core.loggers.axes import ROLLOUT, first_steps
    from miles_core.loggers.jsonl import FILE as METRICS_FILE
    from miles_core.loggers.summary import write_summary
    from miles_core.loggers.timeline import Timeline
    from miles_core.runtime.cluster import connect
    from miles_core.runtime.crew import start_crew
    from miles_core.runtime.loop import Loop
    from miles_core.runtime.loops import LOOPS
    from miles_core.runtime.loops.schedule import Schedule
    from miles_core.runtime.plan import critic_folder
    from miles_core.runtime.reaper import Reaper
    from miles_core.runtime.saving import Saver, read_progress
    from miles_core.weights.transports import remove_stale, run_folder

    started = time.perf_counter()
    loggers = [create(ref, config) for ref in plan.plugins.loggers]
    loop = saver = None
    error: BaseException | None = None
    reaper = Reaper()
    cluster = None
    try:
        remove_stale(run_folder(plan.run_dir))
        reaper.adopt_folder(run_folder(plan.run_dir))
        progress.phase("start")
        cluster = connect(plan.placement, config.get(ClusterOptions).ray_address, reaper)
        # Connecting to Ray puts a handler in place that ends the driver on the spot.
        interruption.renew()
        crew = start_crew(config, plan, cluster)
        if crew.medic is not None:
            crew.medic.tell = progress.message
        for line in crew.info.notices:
            progress.message(line)
        first, version, saved = 0, 0, None
        if plan.resume_from is not None:
            saved = read_progress(plan.resume_from)
            first, version = saved.rollout_id + 1, saved.version
            crew.manager("load_state", saved.rollout, what="the rollout manager to resume")
            progress.message(f"resumed from {plan.resume_from}, after rollout {saved.rollout_id}")
        settings = {o.flag: v.value for o, v in config.items() if not o.declared.secret}
        interval = config.get(EvaluationOptions).eval_interval
        steps = first_steps(first, plan.batch.num_rollout, plan.batch.steps_per_rollout, interval)
        # A run that was killed between saving and logging has lost a row of its curve, which the state has.
        again = saved.metrics if saved is not None and (plan.run_dir / METRICS_FILE).exists() else {}
        if again:
            steps[ROLLOUT] = first - 1
        for logger in loggers:
            logger.start(str(plan.run_dir), settings, steps)
            if again:
                logger.log(again, first - 1)
        host.broadcast(events.RunStart(config, plan.run_dir, plan.batch.num_rollout, first - 1 if first else None))
        progress.resume(first)

        def log(metrics: Mapping[str, float], step: int) -> None:
            for logger in loggers:
                logger.log(metrics, step)

        def saved_state(rollout_id: int, path: Path) -> None:
            host.broadcast(events.CheckpointSaved(rollout_id, path))

        saver = Saver(config, plan, crew, saved_state, progress.message)
        schedule = Schedule.of(config, plan.batch.num_rollout)
        loop = Loop(config, plan, crew, saver, progress, log, host, first, version, schedule)
        loop.timeline = Timeline(plan.run_dir, first)
        loop.history.seconds["start"] = time.perf_counter() - started
        LOOPS[config.get(LoopOptions).loop](loop)
        saver.settle()
        save_hf = config.get(CheckpointOptions).save_hf
        if save_hf:
            progress.phase("save")
            crew.all_trainers("onload", what="trainers to load")
            crew.all_trainers("export_hf", Path(save_hf), what="trainers to export the model")
            if crew.critics:
                with crew.critics_on_devices():
                    crew.all_critics("export_hf", critic_folder(Path(save_hf)), what="critics to export the model")
        for line in unread_report(config, crew.reads()):
            progress.message(line)
        crew.close()
    except BaseException as caught:
        error = caught
        raise
    finally:
        try:
            if cluster is not None:
                cluster.close()
            elif reaper.alive:
                reaper.end_all()
            if saver is not None:
                saver.abandon()
        finally:
            remove_stale(run_folder(plan.run_dir))
            reaper.dismiss()
            for logger in loggers:
                logger.close()
            rollouts = loop.history.rollouts if loop is not None else 0
            host.broadcast(events.RunEnd(plan.run_dir, rollouts, error))
    progress.close()
    write_summary(plan, loop.history, config.get(CheckpointOptions), time.perf_counter() - started)
