"""M440 to M459: serving and generation."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

ENGINES: dict[str, Explanation] = {
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
    "M450": Explanation(
        title="Options that the engine cannot use",
        meaning="An option of the transformers engine is out of range, or an engine is given more than one GPU.",
        remedy="Give a value in the range that the line names.",
        example=(
            "M450 miles-transformers 0.1.0: --rollout-num-gpus-per-engine is 2: the transformers engine uses one GPU. Do: "
            "leave the option at 1, or take an engine that shards a model"
        ),
    ),
    "M451": Explanation(
        title="An engine without its GPU",
        meaning="The engine was given more than one GPU, or PyTorch sees none.",
        remedy="Set `--device cpu`, or one GPU for each engine.",
        example="M451 miles-transformers 0.1.0: --device is cuda and PyTorch sees no GPU. Do: set --device cpu",
    ),
    "M452": Explanation(
        title="A model that the engine cannot serve",
        meaning=(
            "transformers cannot load the checkpoint, its cache cannot be used, or its parameters cannot be replaced in place."
        ),
        remedy="Take a checkpoint that AutoModelForCausalLM loads, or another engine.",
        example=(
            "M452 miles-transformers 0.1.0: cannot load the model in models/tiny: config.json has no model_type. Do: give "
            "an HF directory"
        ),
    ),
    "M453": Explanation(
        title="No room for the KV cache",
        meaning="The memory that is left holds no sequence of the longest length.",
        remedy="Shorten the context, run fewer sequences at once, or give the engine more memory.",
        example=(
            "M453 miles-transformers 0.1.0: no room for the KV cache: one sequence of 32768 tokens takes 3.5 GiB. Do: "
            "lower --rollout-max-context-len"
        ),
    ),
    "M454": Explanation(
        title="An engine in the wrong state",
        meaning=(
            "An engine was asked for something out of order, such as new weights while it generates: a fault of the "
            "caller, not of the options."
        ),
        remedy="Report it with the engine's log.",
        example="M454 miles-transformers 0.1.0: cannot take new weights while generating. Do: pause the engine first",
    ),
    "M455": Explanation(
        title="Logits that are not finite",
        meaning=(
            "The model that the engine serves gives infinities or NaN: its weights have diverged, or overflow in their precision."
        ),
        remedy="Lower the learning rate, or decode in fp32.",
        example=(
            "M455 miles-transformers 0.1.0: the model's logits for 17-3 are not finite: weights of version 9 overflow or "
            "hold NaN. Do: lower the learning rate, or decode in fp32"
        ),
    ),
    "M456": Explanation(
        title="Decoding failed",
        meaning="The thread that decodes has failed, is stuck, or was stopped.",
        remedy="See the engine's log in the run folder.",
        example=("M456 miles-transformers 0.1.0: decoding failed: RuntimeError: out of memory. Do: see the engine's log"),
    ),
    "M457": Explanation(
        title="A weight transaction out of order",
        meaning=(
            "Weights arrived outside an open transaction, of another version, or while their memory was released: a fault "
            "of the caller, not of the options."
        ),
        remedy="Report it with the engine's log.",
        example="M457 miles-transformers 0.1.0: cannot commit version 3: no transaction is open. Do: begin it first",
    ),
    "M458": Explanation(
        title="A weight that does not fit",
        meaning="A published tensor has another shape or type than the engine's parameter.",
        remedy="Check that trainer and engine were started from one checkpoint.",
        example=(
            "M458 miles-transformers 0.1.0: the weight lm_head.weight does not fit: it has shape [64, 32] and the model "
            "has [128, 32]. Do: start both from one checkpoint"
        ),
    ),
    "M459": Explanation(
        title="Weights that are not whole",
        meaning=(
            "A version was committed with parameters missing, or with names that the model does not have. The engine stays closed."
        ),
        remedy="Check that trainer and engine were started from one checkpoint.",
        example=(
            "M459 miles-transformers 0.1.0: version 3 is not whole: 1 missing (lm_head.weight). Do: check the backend's export"
        ),
    ),
}
