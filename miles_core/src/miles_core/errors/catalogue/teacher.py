"""M286 to M289 and M492 to M495: the teacher of on-policy distillation."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

TEACHER_OPTIONS: dict[str, Explanation] = {
    "M286": Explanation(
        title="No teacher, or two",
        meaning=(
            "The advantage estimator, or a switch like `--use-opd`, needs log-probs of a teacher. They come from exactly one "
            "source: a model that the trainer scores, or a server."
        ),
        remedy="Give `--teacher-load DIR` or `--teacher-url URL`.",
        example=(
            "M286 advantage on_policy_distillation: there is no teacher: it needs teacher log-probs. Do: give --teacher-load "
            "DIR, a model to score in the trainer, or --teacher-url URL, a server"
        ),
    ),
    "M287": Explanation(
        title="A teacher with other tokens",
        meaning=(
            "The teacher scores the ids that the policy sampled. A token of the policy has another id in the teacher's "
            "tokenizer, or none, so that the scores would be those of another text."
        ),
        remedy="Take a teacher of the policy's family, with the same tokenizer.",
        example=(
            "M287 models/other: --teacher-load models/other (argument 9) has other tokens than the policy: 2 of 99 tokens "
            "differ: '<|im_end|>', which is 2 for the policy, does not exist for the teacher. Do: take a teacher with the "
            "policy's tokenizer: log-probs of other tokens say nothing about these"
        ),
    ),
    "M288": Explanation(
        title="A teacher that is too small",
        meaning=(
            "The policy's vocabulary head has rows beyond the teacher's, so that it can sample ids that the teacher cannot score; "
            "or prompt and response can have more tokens than the teacher has positions."
        ),
        remedy="Take a teacher whose `vocab_size` is at least the policy's, and lengths that it takes.",
        example=(
            "M288 models/small/config.json: --teacher-load models/small (argument 9) has a smaller vocabulary than the policy: "
            "it scores 151936 tokens and the policy can sample 152064. Do: take a teacher whose vocab_size is at least the policy's"
        ),
    ),
    "M289": Explanation(
        title="A teacher's address or key that cannot be used",
        meaning="`--teacher-url` is no HTTP address, or a secret is given where others can read it.",
        remedy="Give `http://HOST:PORT`; put a key in the environment variable `MILES_TEACHER_API_KEY`.",
        example=(
            "M289 miles-core 0.1.0: --teacher-url localhost:30000 (argument 9) cannot be used: it is no http:// or https:// "
            "address. Do: give http://HOST:PORT"
        ),
    ),
}

TEACHER_RUN: dict[str, Explanation] = {
    "M492": Explanation(
        title="The teacher does not answer",
        meaning="At the start of the run `--teacher-url` refused the connection, was silent, or answered with an error.",
        remedy="Start the server, check the address and the key in `MILES_TEACHER_API_KEY`, and see the server's log.",
        example=(
            "M492 teacher http://10.0.0.7:30000: it does not score a first request: Cannot connect to host 10.0.0.7:30000. "
            "Do: start the server, or correct --teacher-url"
        ),
    ),
    "M493": Explanation(
        title="The teacher's answer cannot be used",
        meaning=(
            "The server answers, but not as SGLang's `/generate` does: `meta_info.input_token_logprobs` is missing, has "
            "entries for other tokens than were sent, or holds something that is no log-prob."
        ),
        remedy="Serve the teacher with SGLang or with miles' transformers engine, with the policy's tokenizer.",
        example=(
            "M493 teacher http://10.0.0.7:30000: its answer cannot be used: the answer has no meta_info.input_token_logprobs. "
            "Do: serve the teacher with SGLang's /generate"
        ),
    ),
    "M494": Explanation(
        title="The teacher ignores the temperature",
        meaning=(
            "The policy's log-probs are those at `--rollout-temperature`, and the teacher's must be too. The server scores "
            "prompts at temperature 1 whatever it is asked for, as SGLang does without a patch."
        ),
        remedy="Set `--rollout-temperature 1`, score the teacher in the trainer with `--teacher-load`, or use another server.",
        example=(
            "M494 teacher http://10.0.0.7:30000: it scores at temperature 1, not at --rollout-temperature 0.7. Do: set "
            "--rollout-temperature 1, use --teacher-load, or serve the teacher with an engine that applies the temperature to "
            "prompts"
        ),
    ),
    "M495": Explanation(
        title="Too many samples without teacher log-probs",
        meaning=(
            "A sample that the teacher does not score, after all retries, is counted and left out of the loss. More than the "
            "share `--reward-failure-limit` of a rollout failed."
        ),
        remedy="Read its log, raise `--teacher-timeout`, lower `--teacher-concurrency`, or raise `--reward-failure-limit`.",
        example=(
            "M495 teacher http://10.0.0.7:30000: 40 of 64 samples have no teacher log-probs: sample 3: it was silent for "
            "120 s. Do: see its log; raise --teacher-timeout, lower --teacher-concurrency, or raise --reward-failure-limit"
        ),
    ),
}
