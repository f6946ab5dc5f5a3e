"""M476 and M477: saving in the background."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

SAVING: dict[str, Explanation] = {
    "M476": Explanation(
        title="A backend that cannot save in the background",
        meaning="`--async-save` needs a backend that can copy its state to host memory and have a thread write it.",
        remedy="Leave the option out, or train with a backend that has the capability `async_save`.",
        example=(
            "M476 backend mine: --async-save cannot be used: backend mine does not hold its state apart from training (capability "
            "async_save). Do: leave the option out"
        ),
    ),
    "M477": Explanation(
        title="A run state was not written",
        meaning=(
            "With `--async-save` a rank's thread could not write its part of a run state. The run ends; the state before it is "
            "untouched, and what there is of this one counts as nothing."
        ),
        remedy="Free space or mend the file system, and go on with `--load`.",
        example=(
            "M477 miles-core: the run state in states/step_0000003.tmp-71/trainer could not be written in the background: No space "
            "left on device. Do: free space, or keep fewer states with --save-total-limit; the last good state is untouched"
        ),
    ),
}
