"""M290 to M294: options of rewards."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

REWARD_OPTIONS: dict[str, Explanation] = {
    "M290": Explanation(
        title="A dict without a key",
        meaning="The reward answers with a dict of numbers, and the option that says which of them counts names none.",
        remedy="Name one: `--reward-key score` is +1 and -1, `--reward-key acc` is 1 and 0.",
        example=(
            "M290 miles-rewards 0.1.0: reward dapo answers with a dict of score, acc and pred, and --reward-key names no number of "
            "it: it is not given. Do: give --reward-key score (+1 and -1) or --reward-key acc (1 and 0)"
        ),
    ),
    "M291": Explanation(
        title="A sum of rewards that cannot be made",
        meaning="`--sum-of` names no reward, one that is not installed, one twice, or a weight that is no number.",
        remedy="Name installed rewards, each with a weight or none: `--rm-type sum --sum-of math format=0.2`.",
        example=("M291 miles-rewards 0.1.0: --sum-of names 'maths', and no such reward is installed. Do: did you mean 'math'?"),
    ),
}
