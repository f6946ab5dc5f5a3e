"""M401 to M409: rollouts that cannot be collected."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

ROLLOUTS: dict[str, Explanation] = {
    "M401": Explanation(
        title="Filters that drop everything",
        meaning="The filters dropped twenty times as many groups in a row as a rollout takes.",
        remedy="Use prompts that the model neither always solves nor never, or another `--dynamic-sampling-filter-path`.",
        example=(
            "M401 miles-core: the filters dropped 1280 groups in a row: dropped so far: zero_std_0.0 1280. Do: "
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
    "M405": Explanation(
        title="Engines that keep aborting",
        meaning=(
            "Requests that an engine cuts off, as it does for new weights, go out again from where they stopped. The same ones "
            "were cut off many times without a single new token."
        ),
        remedy="Look into the engines' logs for what aborts their requests.",
        example=(
            "M405 miles-core: engines cut off 32 samples 20 times in a row without making a token. Do: see the engines' logs: "
            "something keeps aborting their requests"
        ),
    ),
    "M406": Explanation(
        title="A buffer filter that breaks its contract",
        meaning=(
            "The function of `--buffer-filter-path` must remove from the list exactly the groups that it returns, so that no group "
            "is lost or trained on twice."
        ),
        remedy="Remove what is returned, in place, and return no more than `num_samples` groups; see `docs/sampling.md`.",
        example=(
            "M406 --buffer-filter-path mine.pick: the buffer filter left a group in the buffer that it returned, or returned one "
            "twice. Do: remove from the list, in place, exactly the groups that are returned, at most num_samples of them"
        ),
    ),
    "M407": Explanation(
        title="A function of yours failed",
        meaning=(
            "A function that an option names by path raised an exception, or returned something else than it must. The line names "
            "the option, the function and what is wrong."
        ),
        remedy="Repair the function; `docs/sampling.md` has an example of each.",
        example=(
            "M407 --custom-reward-post-process-path mine.centre: the function returned 3 rewards for 8 samples. Do: return "
            "(raw_rewards, rewards), one finite number of each per sample"
        ),
    ),
    "M408": Explanation(
        title="A sample that cannot be saved",
        meaning=(
            "Unfinished and surplus samples are part of the run state, which is plain data. A function put something else into "
            "one, such as an object into its metadata."
        ),
        remedy="Keep numbers, texts, lists and mappings in samples.",
        example=(
            "M408 miles-core: sample 17 cannot be saved: its metadata is no plain data: Object of type set is not JSON "
            "serializable. Do: keep numbers, texts, lists and mappings in samples, as JSON has them"
        ),
    ),
    "M409": Explanation(
        title="A buffer of other groups",
        meaning="The saved state holds groups of earlier rollouts, and the run makes groups of another size.",
        remedy="Resume with the same `--n-samples-per-prompt`, or start afresh without `--load`.",
        example=(
            "M409 miles-core: the saved buffer has groups of 4 samples, and the run makes groups of 8. Do: resume with "
            "--n-samples-per-prompt 4, or start afresh without --load"
        ),
    ),
}
