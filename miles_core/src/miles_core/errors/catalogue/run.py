"""M481 to M499: processes of a run."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

RUN: dict[str, Explanation] = {
    "M481": Explanation(
        title="A process of the run died",
        meaning=(
            "A process ended without saying why: it was killed from outside, ran out of memory, or crashed. The run ended "
            "with it and left nothing behind."
        ),
        remedy="See the log that the line names. Start again with `--load` to go on from the last saved state.",
        example=(
            "M481 miles-core 0.1.0: process trainer-1 (pid 4711) died: it was killed from outside, ran out of memory, or "
            "crashed. Do: see runs/a/logs/trainer-1.log; go on from the last saved state with --load"
        ),
    ),
    "M482": Explanation(
        title="A process of the run failed",
        meaning=("A process raised an exception that is not an error of miles' own; its first traceback is in the log."),
        remedy="See the log that the line names; report it when the fault is not yours.",
        example=("M482 miles-core 0.1.0: process trainer-0 (pid 4711) failed: ValueError: boom. Do: see runs/a/logs/trainer-0.log"),
    ),
    "M483": Explanation(
        title="Ray died, or the reaper",
        meaning="A process of the local Ray cluster was killed or crashed, or the one that would clean up behind a killed driver.",
        remedy="Start the run again with `--load` to go on from the last saved state.",
        example=(
            "M483 ray 2.60.0: Ray's process raylet (pid 4711) died: it was killed or crashed. Do: start the run again "
            "with --load to go on from the last saved state"
        ),
    ),
    "M484": Explanation(
        title="Waiting for too long",
        meaning="The cluster has no room for the run, or processes of it did not answer in time.",
        remedy="Ask for fewer devices, free the cluster, or see the logs that the line names.",
        example=(
            "M484 miles-core 0.1.0: waited 600 s for trainers to start: 1 of 2 answers are missing. Do: see the logs in runs/a/logs"
        ),
    ),
    "M485": Explanation(
        title="Ray does not start",
        meaning="The local Ray cluster did not start, or the one at `--ray-address` cannot be joined.",
        remedy="Check that memory and the temporary folder are not full, or check the address.",
        example=(
            "M485 ray 2.60.0: cannot join the Ray cluster at 10.0.0.1:6379: ConnectionError: no answer. Do: check --ray-address"
        ),
    ),
    "M486": Explanation(
        title="Processes did not end",
        meaning="The run ended, and processes of it did not, although they were told to.",
        remedy="End them by hand; the line names their ids.",
        example="M486 miles-core 0.1.0: processes 4711 of the run did not end. Do: end them by hand",
    ),
    "M490": Explanation(
        title="No informative group",
        meaning=(
            "In several rollouts in a row all rewards of every group were equal, so that no sample carried a gradient: "
            "the prompts are all too hard or all too easy, or the reward is always the same."
        ),
        remedy=(
            "Check the reward on a few responses, use easier or harder prompts, take more samples per prompt, or raise "
            "`--max-skipped-rollouts`."
        ),
        example=(
            "M490 miles-core 0.1.0: 10 rollouts in a row had no informative group: every reward of every group was equal, "
            "so that no sample carries a gradient. Do: check the reward, use easier or harder prompts, more samples per "
            "prompt, or raise --max-skipped-rollouts"
        ),
    ),
}
