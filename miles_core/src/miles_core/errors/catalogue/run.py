"""M401 to M499: runs that fail."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

RUN: dict[str, Explanation] = {
    "M430": Explanation(
        title="A loss without gradient",
        meaning=(
            "The scalar to differentiate does not depend on the model's outputs. A loss plugin that leaves masked tokens "
            "out does that when all are masked."
        ),
        remedy="In the loss, multiply by the mask in place of leaving tokens out.",
        example=(
            "M430 miles-fsdp 0.1.0: the loss does not depend on the model's outputs: the loss returned a tensor without a "
            "gradient. Do: multiply masked terms by the log-probs' mask in place of leaving them out"
        ),
    ),
    "M431": Explanation(
        title="The actor is offloaded",
        meaning=("A pass was asked for while the model's weights were in host memory: a fault of the caller, not of the options."),
        remedy="Report it with the log; a loop of your own calls `onload()` first.",
        example="M431 miles-fsdp 0.1.0: the actor is offloaded. Do: call onload() first",
    ),
    "M432": Explanation(
        title="Unknown weights",
        meaning="A pass named a set of weights that was not set up: a fault of the caller, not of the options.",
        remedy="Report it with the log; a loop of your own names the copy in `ModelSpec.copies`.",
        example="M432 miles-fsdp 0.1.0: there are no weights named ref: set up: actor",
    ),
    "M440": Explanation(
        title="A server cannot listen",
        meaning=(
            "The address or port of an engine or of the router cannot be used: another program has the port, or the "
            "address is not this machine's."
        ),
        remedy="Choose another port, or 0 for a free one.",
        example=(
            "M440 miles-core 0.1.0: cannot serve on 127.0.0.1 port 30000: the port is in use. Do: choose another port, or "
            "0 for a free one"
        ),
    ),
    "M441": Explanation(
        title="An engine does not answer",
        meaning="No connection to the engine's server: it has ended, or a firewall is between.",
        remedy="See the engine's log in the run folder.",
        example=(
            "M441 miles-core 0.1.0: no connection to engine http://127.0.0.1:30000: Connection refused. Do: see the engine's log"
        ),
    ),
    "M442": Explanation(
        title="An engine is silent",
        meaning="The engine took a request and sent nothing for `--rollout-request-timeout` seconds.",
        remedy="See the engine's log in the run folder; raise the time when responses are long.",
        example=(
            "M442 miles-core 0.1.0: engine http://127.0.0.1:30000 was silent for 600 s. Do: see the engine's log, or "
            "raise --rollout-request-timeout"
        ),
    ),
    "M443": Explanation(
        title="An engine refused a request",
        meaning="The engine answered with an error.",
        remedy="Read the reason in the line, and the engine's log in the run folder.",
        example=(
            "M443 miles-core 0.1.0: engine http://127.0.0.1:30000 refused: HTTP 400: the prompt has 9000 tokens, the "
            "model takes 8192. Do: see the engine's log"
        ),
    ),
    "M444": Explanation(
        title="An engine's answer cannot be read",
        meaning=(
            "The engine sent something that is not an answer of its protocol: another program serves that port, or the "
            "versions differ."
        ),
        remedy="Check that the address is an engine's, and that its version is supported.",
        example="M444 miles-core 0.1.0: engine http://127.0.0.1:30000 sent an answer that is not JSON",
    ),
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
        title="Ray died",
        meaning="A process of the local Ray cluster was killed or crashed.",
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
