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
            "M251 miles-algos 0.1.0: --kl-coef 0.001 (recipe reinforce_plus_plus) and --kl-loss-coef 0.01 (argument 9) do not go "
            "together: the policy would be held twice. Do: set one of them to 0"
        ),
    ),
    "M252": Explanation(
        title="A number that an estimator cannot use",
        meaning="A discount or a weight is outside of what it can be.",
        remedy="Choose a number in the range that the line names.",
        example=("M252 miles-algos 0.1.0: --gamma is 1.2: it is a discount. Do: choose 0 to 1"),
    ),
    "M253": Explanation(
        title="GSPO without its ratio",
        meaning=(
            "The advantage of GSPO is that of GRPO; what makes GSPO is the ratio of whole responses, which the loss "
            "`gspo_loss` has and the loss named does not."
        ),
        remedy="Take `--algo gspo`, or `--advantage-estimator grpo` if that is what is meant.",
        example=(
            "M253 miles-algos 0.1.0: advantage gspo with loss policy_loss is grpo: the ratio of whole responses, which is GSPO, "
            "is in gspo_loss. Do: take --algo gspo or --loss-type gspo_loss, or name the estimator grpo"
        ),
    ),
    "M254": Explanation(
        title="A filter of rewards without a reward",
        meaning="The filter `nonzero_std` compares rewards, and the run, which learns from a teacher alone, has none.",
        remedy="Name a reward, or take the filter out.",
        example=(
            "M254 miles-algos 0.1.0: filter nonzero_std without a reward drops every group: no response is graded. Do: name a "
            "reward by --rm-type, or take the filter out"
        ),
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
        meaning="A bound of a ratio, a threshold or a steepness is outside of its range, or two bounds are in the wrong order.",
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
