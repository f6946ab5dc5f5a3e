"""M401 to M409: rollouts that cannot be collected."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

ROLLOUTS: dict[str, Explanation] = {
    "M401": Explanation(
        title="Filters that drop everything",
        meaning="Many waves of prompts in a row gave no group that the filters keep.",
        remedy="Use prompts that the model neither always solves nor never, or another `--dynamic-sampling-filter-path`.",
        example=(
            "M401 miles-core: the filters dropped every group of 20 waves in a row: dropped so far: zero_std_0.0 1280. Do: "
            "use prompts that are neither always solved nor never, or another --dynamic-sampling-filter-path"
        ),
    ),
    "M402": Explanation(
        title="Too many samples that cannot be graded",
        meaning="More than `--reward-failure-limit` of the samples could not be graded. A failure is never counted as a zero.",
        remedy="Repair the reward or the labels; the line shows the first causes.",
        example=(
            "M402 reward math: 300 of 512 samples could not be graded (12 invalid, 288 timed out): sample 3: 10.0 s. Do: "
            "repair the reward or the labels, or raise --reward-failure-limit"
        ),
    ),
    "M403": Explanation(
        title="A reward without a number",
        meaning="The reward returned a dict, and nothing says which of its numbers to train on.",
        remedy="Name it with `--reward-key` (`--eval-reward-key` in evaluation).",
        example=(
            "M403 reward judge: the reward is a dict, and --reward-key is not set: it has score, style. Do: name the "
            "number to train on with --reward-key"
        ),
    ),
    "M404": Explanation(
        title="A reward that breaks its contract",
        meaning="The reward did not return one score per sample.",
        remedy="Return a list with one Scored, Invalid or Timeout per sample, in order.",
        example="M404 reward mine: the reward returned 3 scores for 8 samples. Do: return one score per sample, in order",
    ),
}
