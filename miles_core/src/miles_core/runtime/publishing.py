"""Sending the trainers' weights to the engines, again where an engine was lost on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miles_core.errors import RunError

if TYPE_CHECKING:
    from miles_core.runtime.crew import Crew

ATTEMPTS = 5
"""Times that one version is sent before the run ends."""


def send_weights(crew: Crew, version: int) -> list[Any]:
    """Have every trainer publish ``version``; returns their reports. Engines that share the trainers' devices stay paused.

    Raises:
        RunError: M533, engines were lost every time.
    """
    shared = crew.plan.placement.offload_rollout
    why = ""
    for _ in range(ATTEMPTS if crew.medic is not None else 1):
        _ready(crew)
        if shared:
            crew.all_engines("resume_memory", ["weights"], what="engines to take back weights")
        engines = list(crew.engines)
        answers = crew.all_trainers("publish", version, engines, not shared, what="publishing weights")
        errors = [answer for answer in answers if isinstance(answer, RunError)]
        if not errors:
            return answers
        assert crew.medic is not None
        if not crew.medic.blame(errors, engines):
            raise errors[0]
        why = errors[0].line()
    what = f"version {version} of the weights could not be published {ATTEMPTS} times"
    raise RunError(
        "M533", what, owner="miles-core", why=why, fix="see the engines' logs; go on from the last saved state with --load"
    )


def _ready(crew: Crew) -> None:
    """See that every engine can take weights. One that is started again needs its device for itself."""
    medic, placement = crew.medic, crew.plan.placement
    if medic is None:
        return
    alone = placement.offload_rollout and placement.offload_train and bool(medic.down)
    if alone:
        crew.all_trainers("offload", what="trainers to offload")
    medic.may_start = True
    medic.prepare()
    if placement.offload_rollout:
        crew.all_engines("release_memory", what="engines to release memory", only=medic.bare)
    if alone:
        crew.all_trainers("onload", what="trainers to load")
