"""After which rollouts a run saves, publishes and evaluates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from miles_core.config import CheckpointOptions, EvaluationOptions, LoopOptions

if TYPE_CHECKING:
    from miles_core.options import Config


@dataclass(frozen=True)
class Schedule:
    """A pure function of the options, so that every process of a run, and of one that resumes it, knows the same.

    Attributes:
        total: rollouts of the run.
        publish_every: ``--update-weights-interval``.
        evaluate_every: ``--eval-interval``; None evaluates never.
        saves: whether states are saved at all.
        save_every: ``--save-interval``; None saves after the last rollout alone.
    """

    total: int
    publish_every: int = 1
    evaluate_every: int | None = None
    saves: bool = False
    save_every: int | None = None

    @classmethod
    def of(cls, config: Config, total: int) -> Schedule:
        """The schedule of a run of ``total`` rollouts."""
        checkpoint = config.get(CheckpointOptions)
        return cls(
            total,
            config.get(LoopOptions).update_weights_interval,
            config.get(EvaluationOptions).eval_interval,
            checkpoint.save is not None,
            checkpoint.save_interval,
        )

    def saves_after(self, rollout_id: int) -> bool:
        """Whether the run state is saved once this rollout was trained on."""
        return self.saves and self._due(self.save_every, rollout_id)

    def evaluates_after(self, rollout_id: int) -> bool:
        """Whether the weights are evaluated once this rollout was trained on."""
        return self.evaluate_every is not None and self._due(self.evaluate_every, rollout_id)

    def publishes_after(self, rollout_id: int) -> bool:
        """Whether engines get new weights once this rollout was trained on.

        Besides every k-th rollout, that is before each evaluation, which is of the trained weights, and with each saved state: a
        run that resumes from it has to publish, and so goes on as one that never stopped.
        """
        return self._due(self.publish_every, rollout_id) or self.evaluates_after(rollout_id) or self.saves_after(rollout_id)

    def _due(self, interval: int | None, rollout_id: int) -> bool:
        return rollout_id == self.total - 1 or (interval is not None and (rollout_id + 1) % interval == 0)
