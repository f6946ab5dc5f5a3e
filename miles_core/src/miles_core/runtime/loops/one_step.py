"""Generate the next rollout while this one is trained on: samples are one version behind, and none mixes versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miles_core.runtime.loop import Loop


def run(loop: Loop) -> None:
    """Rollouts ``loop.first`` to the last, each generated while the one before it is trained on.

    Weights are published between two generations, never in one. A state that is saved meanwhile has the prompts of the rollout
    that is ahead as not used: a run that resumes generates it anew.
    """
    schedule = loop.schedule
    loop.publish(loop.first - 1)
    if loop.evaluates_first():
        loop.evaluate(loop.first - 1)
    if loop.first >= schedule.total:
        return
    rollout = loop.generate(loop.first)
    for rollout_id in range(loop.first, schedule.total):
        loop.begin()
        following = rollout_id + 1
        ahead = loop.start_generating(following) if following < schedule.total else None
        metrics = {**rollout["metrics"], **loop.train(rollout_id, rollout)}
        if schedule.saves_after(rollout_id):
            loop.save(rollout_id, metrics)
        if ahead is not None:
            rollout = loop.await_generation(following, ahead)
        if schedule.publishes_after(rollout_id):
            loop.publish(rollout_id)
        loop.finish(rollout_id, metrics)
        if schedule.evaluates_after(rollout_id):
            loop.evaluate(rollout_id)
