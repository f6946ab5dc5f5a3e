"""M346, M348, M349 and M496 to M499: the rollout buffer."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

EXTERNAL_OPTIONS: dict[str, Explanation] = {
    "M346": Explanation(
        title="A rollout buffer's address or token that cannot be used",
        meaning="`--rollout-buffer-url` is no HTTP address, or a secret is given where others can read it.",
        remedy="Give `http://HOST:PORT`; put a token in the environment variable `MILES_ROLLOUT_BUFFER_TOKEN`.",
        example=(
            "M346 miles-core 0.1.0: --rollout-buffer-url localhost:8889 (argument 9) cannot be used: it is no http:// or "
            "https:// address. Do: give http://HOST:PORT"
        ),
    ),
    "M348": Explanation(
        title="Options that do not go with a rollout buffer",
        meaning="Agents outside the run generate. The other option says otherwise about where rollouts come from, or needs more.",
        remedy="Leave one of the two out, or add what is named.",
        example=(
            "M348 miles-core 0.1.0: --rollout-buffer-url http://127.0.0.1:8889 (argument 9) does not go with --loop async "
            "(argument 11): what was taken from the buffer is told apart from what was saved by rollouts in turn. Do: take "
            "--loop sync"
        ),
    ),
    "M349": Explanation(
        title="A rollout buffer that cannot be served",
        meaning="The server would be open to others without a token, or an option of it has no legal value.",
        remedy="Set `MILES_ROLLOUT_BUFFER_TOKEN`, or serve on `127.0.0.1`.",
        example=(
            "M349 rollout buffer: --host 0.0.0.0 lets others post trajectories: MILES_ROLLOUT_BUFFER_TOKEN is not set. Do: set "
            "MILES_ROLLOUT_BUFFER_TOKEN, here and for the run and its agents, or serve on 127.0.0.1"
        ),
    ),
}

EXTERNAL_RUN: dict[str, Explanation] = {
    "M496": Explanation(
        title="The rollout buffer does not answer",
        meaning="At the start of the run `--rollout-buffer-url` refused the connection, was silent, or is another server.",
        remedy="Start the buffer first, and check the address and `MILES_ROLLOUT_BUFFER_TOKEN`.",
        example=(
            "M496 rollout buffer http://127.0.0.1:8889: it cannot be used: Cannot connect to host 127.0.0.1:8889. Do: start it "
            "with python -m miles_core.rollout.external.server, or correct --rollout-buffer-url"
        ),
    ),
    "M497": Explanation(
        title="The rollout buffer failed too often",
        meaning="A call to the buffer, and `--fetch-trajectory-retry-times` further tries with growing pauses, failed.",
        remedy="See the buffer's log. With `--fetch-trajectory-retry-times -1` the run never gives up.",
        example=(
            "M497 rollout buffer http://127.0.0.1:8889: POST /get_rollout_data failed 4 times in a row: HTTP 502: Bad Gateway. "
            "Do: see its log and start it again, or raise --fetch-trajectory-retry-times; -1 never gives up"
        ),
    ),
    "M498": Explanation(
        title="The rollout buffer's answer cannot be used",
        meaning="The buffer refuses a call, such as that of another run, or answers something else than the protocol says.",
        remedy="Use one buffer for one run at a time, and a server that speaks the protocol of `docs/rollout-buffer.md`.",
        example=(
            "M498 rollout buffer http://127.0.0.1:8889: its answer cannot be used: POST /get_rollout_data: HTTP 401: the bearer "
            "token is missing or wrong. Do: see the buffer's log; one buffer serves one run at a time, with the same "
            "MILES_ROLLOUT_BUFFER_TOKEN"
        ),
    ),
    "M499": Explanation(
        title="Too many unusable trajectories",
        meaning=(
            "A trajectory with wrong lengths, masks, ids, log-probs or a reward that is no finite number is counted and skipped. "
            "More than the share `--reward-failure-limit` of a rollout were so, or no group of three rollouts' worth was whole."
        ),
        remedy="Repair the agents; the message has the first reasons.",
        example=(
            "M499 rollout buffer http://127.0.0.1:8889: 24 of 24 trajectories cannot be used, and 6 groups are incomplete: "
            "trajectory '0-1': reward is no finite number. Do: repair the agents, or raise --reward-failure-limit"
        ),
    ),
}
