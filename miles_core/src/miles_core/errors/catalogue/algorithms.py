"""M250 to M262: algorithms, and M423: functions of a loss."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

ALGORITHM_OPTIONS: dict[str, Explanation] = {
    "M250": Explanation(
        title="An estimator without its whitening",
        meaning="The whitening of advantages over a rollout is a part of the algorithm, and it is off.",
        remedy="Add `--normalize-advantages`, or take the recipe of that name, which sets it.",
        example=(
            "M250 miles-algos 0.1.0: advantage reinforce_plus_plus needs --normalize-advantages: without whitening "
            "every token of a response with a positive reward is reinforced, however bad it is. Do: add it, or take "
            "--algo reinforce_plus_plus"
        ),
    ),
    "M251": Explanation(
        title="Two KL penalties",
        meaning="A KL divergence from the reference is in the reward and in the loss.",
        remedy="Set `--kl-coef` or `--kl-loss-coef` to 0.",
        example=(
            "M251 miles-algos 0.1.0: --kl-coef and --kl-loss-coef are both given: the policy would be held to the "
            "reference twice. Do: set one of them to 0"
        ),
    ),
    "M252": Explanation(
        title="A number that an estimator cannot use",
        meaning="A discount or a weight is outside of what it can be.",
        remedy="Choose a number in the range that the line names.",
        example=("M252 miles-algos 0.1.0: --gamma is 1.2: it is a discount. Do: choose 0 to 1"),
    ),
    "M260": Explanation(
        title="A correction without its log-probs",
        meaning="A correction compares the engine's log-probs with the trainer's own, which are not computed.",
        remedy="Leave out the correction, or `--use-rollout-logprobs`.",
        example=(
            "M260 miles-algos 0.1.0: --use-tis does not go with --use-rollout-logprobs: the trainer's own log-probs "
            "are not computed, so that there is nothing to compare the engine's with. Do: leave one of them out"
        ),
    ),
    "M261": Explanation(
        title="Bounds that a loss cannot use",
        meaning="A bound of a ratio, a threshold or a steepness is outside of what it can be, or two bounds are in the wrong order.",
        remedy="Choose a number in the range that the line names.",
        example=("M261 miles-algos 0.1.0: --tis-clip-low 3 is above --tis-clip 2. Do: swap them"),
    ),
    "M262": Explanation(
        title="A custom loss without a function",
        meaning="`--loss-type custom_loss` trains with the function that `--custom-loss-function-path` names, and none is named.",
        remedy="Name one, or take another loss.",
        example=(
            "M262 miles-algos 0.1.0: --loss-type custom_loss has no function: the loss is what --custom-loss-function-"
            "path names. Do: give that option, or another loss"
        ),
    ),
}

ALGORITHM_RUN: dict[str, Explanation] = {
    "M423": Explanation(
        title="A function of the loss that breaks its contract",
        meaning="A function that an option names raised an exception, or returned something of another shape or kind.",
        remedy="Repair the function; see docs/custom-functions.md.",
        example=("M423 --custom-tis-function-path mine.weigh: the function returned Tensor. Do: return (pg_loss, metrics)"),
    ),
}
