"""The steps that every loop is made of: generate, train, save, publish, evaluate. The loops are in ``runtime/loops``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from miles_core.config import EvaluationOptions, RunOptions
from miles_core.errors import RunError
from miles_core.plugins import events
from miles_core.runtime.publishing import send_weights
from miles_core.runtime.training_round import train_round

if TYPE_CHECKING:
    from miles_core.loggers.progress import Progress
    from miles_core.loggers.timeline import Timeline
    from miles_core.options import Config
    from miles_core.plugins import PluginHost
    from miles_core.runtime.crew import Crew
    from miles_core.runtime.loops.schedule import Schedule
    from miles_core.runtime.plan import RunPlan
    from miles_core.runtime.saving import Saver


@dataclass
class History:
    """What the end-of-run summary shows: every logged metric by name, as ``(step, value)``, and seconds by phase."""

    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rollouts: int = 0

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Remember logged metrics."""
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append((step, float(value)))


@dataclass
class Loop:
    """One run over started processes: the steps that loops call, those of a rollout between :meth:`begin` and :meth:`finish`."""

    config: Config
    plan: RunPlan
    crew: Crew
    saver: Saver
    progress: Progress
    log: Callable[[Mapping[str, float], int], None]
    host: PluginHost
    first: int
    version: int
    schedule: Schedule
    history: History = field(default_factory=History)
    timeline: Timeline | None = None
    _timers: dict[str, float] = field(default_factory=dict)
    _began: float = 0.0
    _skipped: int = 0

    def begin(self) -> None:
        """A rollout's turn begins."""
        self._began = time.perf_counter()
        self._timers = {}

    def generate(self, rollout_id: int) -> dict[str, Any]:
        """Sample, grade and convert one rollout; it is trained on before new weights are published."""
        return self.await_generation(rollout_id, self._start(rollout_id, self.version))

    def start_generating(self, rollout_id: int) -> Any:
        """Begin to generate the rollout after the one that is trained on now; returns what :meth:`await_generation` takes."""
        return self._start(rollout_id, self.version + self.schedule.publishes_after(rollout_id - 1))

    def await_generation(self, rollout_id: int, generation: Any) -> dict[str, Any]:
        """Wait for a rollout."""
        with self._phase("rollout", rollout_id):
            rollout: dict[str, Any] = self.crew.supervisor.wait([generation], f"rollout {rollout_id}", poll=self._show_generation)[
                0
            ]
        self.host.broadcast(events.RolloutEnd(rollout_id, rollout["metrics"]))
        return rollout

    def _start(self, rollout_id: int, trained_at: int) -> Any:
        crew = self.crew
        return crew.rollout.generate.remote(rollout_id, crew.data_size, crew.critic_data_size, self.version, trained_at)

    def feed(self, rollout_id: int) -> None:
        """Tell the manager which version the engines serve since a rollout, so that it may generate so far ahead."""
        self.crew.manager("published", rollout_id, self.version, what="the rollout manager to generate")

    def train(self, rollout_id: int, rollout: dict[str, Any]) -> dict[str, float]:
        """Optimizer steps on one rollout; returns the rollout's metrics of the trainers, none without any."""
        if not self.crew.trainers:
            return {}
        with self._phase("offload", rollout_id):
            if self.plan.placement.offload_rollout and self.crew.engines:
                medic = self.crew.medic
                if medic is not None:
                    medic.settle()
                    medic.may_start = False
                self.crew.all_engines("release_memory", what="engines to release memory")
        trains_actor = rollout_id >= self.plan.batch.critic_only_rollouts
        with self._phase("train", rollout_id):
            done = train_round(self.crew, rollout, rollout_id, actor_steps=trains_actor)
        if trains_actor:
            self._count_skipped(rollout_id, done.actor.skipped)
        steps = done.steps()
        for step, metrics in enumerate(steps):
            self._log(metrics, rollout_id * self.plan.batch.steps_per_rollout + step)
        last = steps[-1] if steps else {}
        self.host.broadcast(events.TrainEnd(rollout_id, last))
        return {**done.actor.rollout_metrics, **{f"perf/{name}_time": s for name, s in done.seconds().items()}, **last}

    def save(self, rollout_id: int, metrics: Mapping[str, float]) -> None:
        """Save the run state, with the rollout's metrics, which are logged when its turn ends."""
        with self._phase("save", rollout_id):
            self.saver.save(rollout_id, self.version, _of_rollout(metrics))

    def publish(self, rollout_id: int) -> None:
        """Give the engines the trainers' weights as a new version."""
        if not (self.crew.engines and self.crew.trainers):
            return
        placement = self.plan.placement
        self.version += 1
        with self._phase("publish", rollout_id):
            answers = send_weights(self.crew, self.version)
            # Engines get their caches back, and go on, once the trainers have left the devices.
            if placement.offload_train:
                self.crew.all_trainers("offload", what="trainers to offload")
            if placement.offload_rollout:
                self.crew.all_engines("resume_memory", ["kv_cache"], what="engines to take back memory")
                self.crew.all_engines("resume", what="engines to resume")
            if self.crew.medic is not None:
                self.crew.medic.published(self.version)
            self.crew.tell_router("published", self.version)
        reports = [report for report in answers if report is not None]
        seconds = max(r.seconds for r in reports)
        sent = sum(r.bytes for r in reports)
        self._timers["publish_transfer"] = seconds
        self.host.broadcast(events.WeightsPublished(rollout_id, self.version, seconds, sent))

    def evaluate(self, rollout_id: int) -> None:
        """Evaluate the published weights."""
        with self._phase("evaluate", rollout_id):
            metrics = self.crew.manager("evaluate", rollout_id, what="evaluation", poll=self._show_generation)
        self._log(metrics, rollout_id + 1)
        self.progress.evaluated(rollout_id, metrics)
        self.host.broadcast(events.EvalEnd(rollout_id, metrics))

    def evaluates_first(self) -> bool:
        """Whether the weights that the run begins with are evaluated."""
        if self.schedule.evaluate_every is None:
            return False
        if self.first == 0:
            return not self.config.get(EvaluationOptions).skip_eval_before_train
        # The saved state is older than the evaluation that followed it: make up for one that the end of the run cut off.
        return self.schedule.evaluates_after(self.first - 1)

    def _count_skipped(self, rollout_id: int, skipped: bool) -> None:
        limit = self.config.get(RunOptions).max_skipped_rollouts
        self._skipped = self._skipped + 1 if skipped else 0
        if skipped:
            self.progress.message(f"rollout {rollout_id}: no informative group (all rewards equal), no optimizer step")
        if self._skipped >= limit:
            raise RunError(
                "M490",
                f"{limit} rollouts in a row had no informative group",
                owner="miles-core",
                why="every reward of every group was equal, so that no sample carries a gradient",
                fix="check the reward, use easier or harder prompts, more samples per prompt, or raise --max-skipped-rollouts",
            )

    def finish(self, rollout_id: int, metrics: dict[str, float]) -> None:
        """A rollout's turn ends: log what it gave."""
        timers, step_seconds = self._timers, time.perf_counter() - self._began
        work = timers.get("rollout", 0.0) + timers.get("train", 0.0)
        perf = {
            "perf/step_time": step_seconds,
            "perf/rollout_phase_time": timers.get("rollout", 0.0),
            "perf/train_time": timers.get("train", 0.0),
            "perf/update_weights_time": timers.get("publish", 0.0),
            "perf/publish_transfer_time": timers.get("publish_transfer", 0.0),
            "perf/save_model_time": timers.get("save", 0.0),
            **self._restarts(),
            "perf/overhead_ratio": max(0.0, step_seconds - work - timers.get("save", 0.0)) / step_seconds,
        }
        self._log({**_of_rollout(metrics), **perf}, rollout_id)
        self.history.rollouts += 1
        self.progress.finish_rollout({**metrics, **perf})

    def _restarts(self) -> dict[str, float]:
        """Engines that came back since the last rollout."""
        medic = self.crew.medic
        if medic is None:
            return {}
        count, medic.restarts = medic.restarts, 0
        return {"perf/engine_restarts": float(count)}

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        self.history.add(metrics, step)
        self.log(metrics, step)

    def _show_generation(self) -> None:
        done = self.crew.manager_progress()
        if done:
            self.progress.advance(done["done"], done["total"])

    @contextmanager
    def _phase(self, name: str, rollout_id: int) -> Iterator[None]:
        self.progress.phase(name)
        began, started = time.time(), time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self._timers[name] = self._timers.get(name, 0.0) + seconds
        self.history.seconds[name] = self.history.seconds.get(name, 0.0) + seconds
        if self.timeline is not None:
            self.timeline.add(name, rollout_id, began, seconds)


def _of_rollout(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those on the axis of rollouts."""
    return {name: value for name, value in metrics.items() if not name.startswith("train/")}
