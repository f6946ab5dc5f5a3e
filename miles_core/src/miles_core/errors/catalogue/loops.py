"""M227 to M229: loops."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

LOOP_OPTIONS: dict[str, Explanation] = {
    "M227": Explanation(
        title="A loop that the placement does not allow",
        meaning=(
            "With `--loop one-step` and `--loop async` engines generate while the trainer works: each needs devices of its own. "
            "Engines that free their weights for the trainer get them back by a publish, so that `--update-weights-interval` must "
            "be 1."
        ),
        remedy="Give `--rollout-num-gpus` in place of `--colocate`, leave offloading of the engines out, or take the defaults.",
        example=(
            "M227 miles-core 0.1.0: --loop async (argument 9) does not go with --colocate (argument 3): engines generate while the "
            "trainer works, so that each needs devices of its own. Do: give --rollout-num-gpus instead, or take --loop sync"
        ),
    ),
    "M228": Explanation(
        title="An option that the loop has no use for",
        meaning=(
            "`--loop async` generates all the time: there is no rollout to over-sample or to cut short, no function that could "
            "collect it, and no single version of the weights that made it. A run that does not both generate and train has one "
            "loop, `sync`."
        ),
        remedy="Leave one of the two options out.",
        example=(
            "M228 miles-core 0.1.0: --loop async (argument 9) does not go with --partial-rollout (argument 11): groups go out all "
            "the time, as --max-staleness allows, and none is cut short. Do: leave one of them out"
        ),
    ),
    "M229": Explanation(
        title="A loop that is not on policy",
        meaning="`--true-on-policy-mode` promises that the weights that are trained have made every token; the loop breaks that.",
        remedy="Take `--loop sync` with `--update-weights-interval 1`, or leave `--true-on-policy-mode` out.",
        example=(
            "M229 miles-core 0.1.0: --loop one-step (argument 9) contradicts --true-on-policy-mode (argument 11): it trains on "
            "tokens of earlier weights. Do: take --loop sync, and publish after every rollout"
        ),
    ),
}
