"""M275 to M277 and M433 to M436: routing replay of mixtures of experts."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

ROUTING_OPTIONS: dict[str, Explanation] = {
    "M275": Explanation(
        title="A run that cannot replay routes",
        meaning=(
            "`--use-routing-replay` and `--use-rollout-routing-replay` need a training backend that can put tokens to given "
            "experts, and responses that the policy made. A backend says so by the capability `routing_replay`."
        ),
        remedy="Use a backend that has it, such as `fsdp`, or leave the option out.",
        example=(
            "M275 backend other: --use-routing-replay (argument 9) cannot be used: backend other does not replay routes "
            "(capability routing_replay). Do: use --backend fsdp, or leave the option out"
        ),
    ),
    "M276": Explanation(
        title="Routing replay of a model without experts",
        meaning="The config.json of `--hf-checkpoint` names no experts, or not how many a token goes to: nothing is routed.",
        remedy="Leave the option out; it is for mixtures of experts.",
        example=(
            "M276 models/tiny/config.json: --use-routing-replay (argument 9) has nothing to replay: qwen3 has no num_experts. "
            "Do: leave the option out"
        ),
    ),
    "M277": Explanation(
        title="An engine that does not tell its routes",
        meaning=(
            "`--use-rollout-routing-replay` trains with the experts that the engine chose. An engine that can report them says so "
            "by the capability `routed_experts`."
        ),
        remedy="Use an engine that has it, such as `transformers`, or `--use-routing-replay`, which needs nothing of the engine.",
        example=(
            "M277 engine other: --use-rollout-routing-replay (argument 9) cannot be used: engine other does not report routed "
            "experts (capability routed_experts). Do: use --engine transformers, or --use-routing-replay"
        ),
    ),
}

ROUTING_RUN: dict[str, Explanation] = {
    "M433": Explanation(
        title="A sample without routed experts",
        meaning=(
            "`--use-rollout-routing-replay` trains with the engine's routes, and a sample came without them: the engine sent none, "
            "or a function that makes samples dropped them."
        ),
        remedy="Keep `Sample.routed_experts` in functions that make samples, or use `--use-routing-replay`.",
        example=(
            "M433 miles-core 0.1.0: sample 17 has no routed experts: --use-rollout-routing-replay trains with the engine's "
            "routes, and nothing brought this sample's. Do: have the function that makes samples keep routed_experts, or use "
            "--use-routing-replay"
        ),
    ),
    "M434": Explanation(
        title="Routes of a wrong shape",
        meaning=(
            "Routes are one expert number for each token, decoder layer and place among the top k. These are of other tokens, or "
            "of another model: engine and trainer run different ones, or the backend recorded something else than it was given."
        ),
        remedy="Give engine and trainer the same checkpoint; keep `Sample.routed_experts` in step with the sample's tokens.",
        example=(
            "M434 miles-core 0.1.0: sample 17 has routes of a wrong shape: they are [40, 24, 8] where [41, 48, 8] (tokens, layers, "
            "experts per token) belongs. Do: engine and trainer must run the same model, and a function that makes samples must "
            "keep routed_experts whole"
        ),
    ),
    "M435": Explanation(
        title="Routers that cannot be replayed",
        meaning=(
            "The backend puts itself in front of the routers that it knows, whose gates it can compute for given experts. The "
            "model has none of these."
        ),
        remedy="Leave `--use-routing-replay` and `--use-rollout-routing-replay` out, or use a backend that knows the model.",
        example=(
            "M435 miles-fsdp 0.1.0: the routes of deepseek_v3 cannot be replayed: it has no routers of the kinds "
            "FlexOlmoTopKRouter, MixtralTopKRouter, OlmoeTopKRouter, Qwen2MoeTopKRouter, Qwen3MoeTopKRouter. Do: leave "
            "--use-routing-replay and --use-rollout-routing-replay out, or use another backend"
        ),
    ),
    "M436": Explanation(
        title="An engine whose model cannot tell its routes",
        meaning=(
            "With `--use-rollout-routing-replay` the engine notes which experts its routers choose. The model has no routers, or "
            "routers that do not return their choice."
        ),
        remedy="Use `--use-routing-replay`, which records routes in the trainer, or another engine.",
        example=(
            "M436 miles-transformers 0.1.0: DeepseekV3ForCausalLM cannot tell its routes: its routers do not return the experts "
            "that they choose. Do: leave --use-rollout-routing-replay out; --use-routing-replay needs nothing of the engine"
        ),
    ),
}
