"""Training on one rollout: the actor alone, or actor and critic with values and returns going between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from miles_core.runtime.crew import Crew
    from miles_core.training.report import TrainReport


@dataclass(frozen=True)
class TrainingRound:
    """What the ranks that report said; ``critic`` is None without one."""

    actor: TrainReport
    critic: TrainReport | None = None

    def steps(self) -> list[dict[str, float]]:
        """Metrics of each optimizer step, of both."""
        parts = [self.actor.metrics_per_step, self.critic.metrics_per_step if self.critic is not None else []]
        return [
            {name: value for part in parts if step < len(part) for name, value in part[step].items()}
            for step in range(max(map(len, parts)))
        ]

    def seconds(self) -> dict[str, float]:
        """By phase."""
        return {**self.actor.seconds, **(self.critic.seconds if self.critic is not None else {})}


def train_round(crew: Crew, rollout: Mapping[str, Any], rollout_id: int, *, actor_steps: bool) -> TrainingRound:
    """Train on a rollout; the actor holds the devices afterwards.

    The critic values the samples; the actor scores them and computes advantages and returns; then both are trained: at once on
    devices of their own, in turn where they share them.

    Args:
        crew: whose engines have made room.
        rollout: what the rollout manager made.
        rollout_id: of it.
        actor_steps: whether the actor makes optimizer steps, too.
    """
    placement, what = crew.plan.placement, f"training on rollout {rollout_id}"
    in_turn = placement.critics_take_turns
    if in_turn:
        crew.all_critics("onload", what="critics to load")
    values = crew.all_critics("values", rollout.get("critic_batches"), what=f"values of rollout {rollout_id}")
    if in_turn:
        crew.all_critics("offload", what="critics to offload")
    if placement.offload_train:
        crew.all_trainers("onload", what="trainers to load")
    if not crew.critics:
        return TrainingRound(_reporting(crew.all_trainers("train", rollout["batches"], rollout["version"], what=what)))

    given = rollout["batches"], rollout["version"], _there(values)
    found = crew.all_trainers("begin", *given, what=f"advantages of rollout {rollout_id}")
    returns = _there(found)
    if in_turn:
        actor = crew.all_trainers("finish", actor_steps, what=what)
        with crew.critics_on_devices():
            critic = crew.all_critics("train", returns, what=f"training the critic on rollout {rollout_id}")
    else:
        refs = [t.finish.remote(actor_steps) for t in crew.trainers] + [c.train.remote(returns) for c in crew.critics]
        reports = crew.supervisor.wait(refs, what)
        actor, critic = reports[: len(crew.trainers)], reports[len(crew.trainers) :]
    return TrainingRound(_reporting(actor), _reporting(critic))


def _there(references: list[Any]) -> list[Any]:
    return [reference for reference in references if reference is not None]


def _reporting(reports: list[Any]) -> TrainReport:
    report: TrainReport = next(r for r in reports if r is not None and r.reports)
    return report
