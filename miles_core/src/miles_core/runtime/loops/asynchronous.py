"""Generate all the time, and train on what is ready: no sample waits for a longer one, within a bound on staleness."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miles_core.runtime.loop import Loop


def run(loop: Loop) -> None:
    """Rollouts ``loop.first`` to the last, each made of groups that are ready.

    From the first publish on, the rollout manager keeps groups on their way, as many as ``--max-staleness`` allows (see
    :class:`miles_core.rollout.stream.Stream`). Publishing cuts off what engines decode; it goes on from where it stopped with the
    new weights. Evaluations, trainings and savings do not stop generation.
    """
    schedule = loop.schedule
    loop.publish(loop.first - 1)
    if loop.evaluates_first():
        loop.evaluate(loop.first - 1)
    loop.feed(loop.first - 1)
    for rollout_id in range(loop.first, schedule.total):
        loop.begin()
        rollout = loop.generate(rollout_id)
        metrics = {**rollout["metrics"], **loop.train(rollout_id, rollout)}
        if schedule.saves_after(rollout_id):
            loop.save(rollout_id, metrics)
        if schedule.publishes_after(rollout_id):
            loop.publish(rollout_id)
            loop.feed(rollout_id)
        loop.finish(rollout_id, metrics)
        if schedule.evaluates_after(rollout_id):
            loop.evaluate(rollout_id)
