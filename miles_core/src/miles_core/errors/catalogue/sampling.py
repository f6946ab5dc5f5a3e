"""M280 to M282: options of sampling and filtering."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

SAMPLING_OPTIONS: dict[str, Explanation] = {
    "M280": Explanation(
        title="Over-sampling below the rollout",
        meaning="`--over-sampling-batch-size` prompts go out together, and a rollout needs `--rollout-batch-size` groups.",
        remedy="Give at least `--rollout-batch-size`, or leave it out.",
        example=(
            "M280 miles-core 0.1.0: --over-sampling-batch-size 16 (argument 9) is below --rollout-batch-size 32 (argument 7): a "
            "rollout needs 32 groups. Do: give 32 or more, or leave it out"
        ),
    ),
    "M281": Explanation(
        title="A mask of earlier tokens without partial rollouts",
        meaning="`--mask-offpolicy-in-partial-rollout` masks tokens of earlier rollouts, which only `--partial-rollout` keeps.",
        remedy="Give `--partial-rollout`, or leave the option out.",
        example=(
            "M281 miles-core 0.1.0: --mask-offpolicy-in-partial-rollout (argument 9) needs --partial-rollout: only a partial "
            "rollout takes over tokens of earlier ones. Do: give --partial-rollout, or leave it out"
        ),
    ),
    "M282": Explanation(
        title="Two options that make the rewards",
        meaning="One of the options takes the graded rewards and makes what is trained on; the other would have no effect.",
        remedy="Leave one of them out, and let the function do the work of both.",
        example=(
            "M282 miles-core 0.1.0: --overlong-buffer-ratio 0.2 (argument 9) does not go with --custom-reward-post-process-path "
            "mine.centre (argument 11): that function takes the graded rewards and makes those that are trained on. Do: leave one "
            "of them out"
        ),
    ),
}
