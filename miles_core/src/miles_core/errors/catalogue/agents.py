"""M350 to M352: agents, their sessions, and the capture of routes."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

AGENTS: dict[str, Explanation] = {
    "M350": Explanation(
        title="An agent never asked the model",
        meaning=(
            "An agent of `--custom-generate-function-path` returned, and no request of its had come to its session: there is "
            "nothing to train on."
        ),
        remedy=(
            "Give the agent's client `base_url`, which is another for each sample. For a sample whose environment broke, set "
            "`sample.status = Status.FAILED`."
        ),
        example=(
            "M350 --custom-generate-function-path mine.py:agent: the agent never asked the model for sample 3. Do: give base_url "
            "to its client; set sample.status = Status.FAILED where its environment broke"
        ),
    ),
    "M351": Explanation(
        title="An agent has no way to talk to the model",
        meaning="The agent's messages become tokens by the tokenizer's chat template, and the checkpoint's tokenizer has none.",
        remedy="Add a `chat_template` to the tokenizer, or make the response with tokens and texts: `fn(sample, generate)`.",
        example=(
            "M351 --custom-generate-function-path: the agent mine.py:agent cannot talk to the model: the tokenizer of models/base "
            "has no chat template. Do: add a chat_template to the tokenizer, or write the function as fn(sample, generate)"
        ),
    ),
    "M352": Explanation(
        title="Nothing would be captured",
        meaning=(
            "The middleware `routing_capture` asks engines for the experts of every token, and they note these only with "
            "`--use-rollout-routing-replay`."
        ),
        remedy="Add `--use-rollout-routing-replay`, or leave the middleware out.",
        example=(
            "M352 miles-core 0.1.0: --miles-router-middleware-paths routing_capture (argument 9) has nothing to capture: the "
            "engines note no routes. Do: add --use-rollout-routing-replay, or leave routing_capture out"
        ),
    ),
}
