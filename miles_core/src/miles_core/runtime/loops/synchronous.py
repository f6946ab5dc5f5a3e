"""Generate and train in turn: every token is of the weights that the engines were given last."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miles_core.runtime.loop import Loop


def run(loop: Loop) -> None:
    """Rollouts ``loop.first`` to the last, one after the other."""
    schedule = loop.schedule
    loop.publish(loop.first - 1)
    if loop.evaluates_first():
        loop.evaluate(loop.first - 1)
    for rollout_id in range(loop.first, schedule.total):
        loop.begin()
        rollout = loop.generate(rollout_id)
        metrics = {**rollout["metrics"], **loop.train(rollout_id, rollout)}
        if schedule.saves_after(rollout_id):
            loop.save(rollout_id, metrics)
        if schedule.publishes_after(rollout_id):
            loop.publish(rollout_id)
        loop.finish(rollout_id, metrics)
        if schedule.evaluates_after(rollout_id):
            loop.evaluate(rollout_id)
