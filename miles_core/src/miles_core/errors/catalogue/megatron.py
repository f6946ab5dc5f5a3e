"""M550 to M579: the megatron backend."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

MEGATRON_OPTIONS: dict[str, Explanation] = {
    "M550": Explanation(
        title="Parallel sizes that fit neither run nor model",
        meaning=(
            "The parallel sizes of the megatron backend do not divide the number of ranks, or the model's heads, key-value heads, "
            "hidden units, layers or experts."
        ),
        remedy="Take sizes that divide them: the message says which number is meant, and what divides it.",
        example=(
            "M550 miles-megatron: --tensor-model-parallel-size 4 does not fit --hf-checkpoint models/tiny: it does not divide the "
            "model's 2 key-value heads. Do: take 1 or 2"
        ),
    ),
    "M551": Explanation(
        title="Options of the megatron backend that contradict each other",
        meaning="Two options cannot both hold, or one has no effect without another.",
        remedy="Leave one of them out, or set what it builds on.",
        example=(
            "M551 miles-megatron: --context-parallel-size 2 contradicts --qkv-format bshd: context-parallel ranks share packed "
            "rows. Do: set --qkv-format thd"
        ),
    ),
    "M552": Explanation(
        title="megatron-core finds no GPU",
        meaning="The megatron backend computes with megatron-core, which runs on CUDA devices only.",
        remedy="Run where there are GPUs, or take `--backend fsdp`.",
        example=(
            "M552 miles-megatron: megatron-core finds no GPU: Torch not compiled with CUDA enabled. Do: set --backend fsdp, which "
            "also runs on CPUs"
        ),
    ),
    "M553": Explanation(
        title="Log-probs that are not those of transformers",
        meaning=(
            "Before the first step, the megatron backend computes log-probs of a few tokens from the checkpoint's weights, and "
            "they are not those that transformers computes: the model's constants or its table of weights are not right for it."
        ),
        remedy=(
            "Name the right table by `--model-name`, correct the function of `--custom-model-provider-path`, or train with "
            "`--backend fsdp`. `--no-check-hf-log-probs` goes on nevertheless."
        ),
        example=(
            "M553 miles-megatron: log-probs of models/tiny differ from those of transformers by 1.8 on average: the bound is "
            "0.001. Do: set --model-name to the model's architecture, or take --backend fsdp"
        ),
    ),
    "M554": Explanation(
        title="A model that was built without what training needs",
        meaning="A function of `--custom-model-provider-path` returned something that is no GPTModel of megatron-core.",
        remedy="Return a GPTModel, or a subclass of it, whose core attention is `miles_megatron.attention.PackedAttention`.",
        example="M554 miles-megatron: my.provider returned a Linear. Do: return a GPTModel of megatron-core",
    ),
    "M570": Explanation(
        title="Multi-token prediction of a model that has none",
        meaning="`--enable-mtp-training` trains layers of multi-token prediction, and `config.json` says that there are none.",
        remedy="Leave it out, or train a model that has such layers (`num_nextn_predict_layers` of MiMo's configs).",
        example=(
            "M570 miles-megatron: --enable-mtp-training has nothing to train: models/tiny has no layers of multi-token prediction. "
            "Do: leave it out, or give a model that has some, such as MiMo"
        ),
    ),
    "M571": Explanation(
        title="Options of multi-token prediction out of range",
        meaning=(
            "`--mtp-num-layers` is the number of layers that are trained, at most those that the model has, and "
            "`--mtp-loss-scaling-factor` the weight of their loss, above 0."
        ),
        remedy="Give a number in the range that the message names.",
        example=(
            "M571 miles-megatron: --mtp-num-layers is 3: models/mimo has 1 of these layers, of which the first so many are "
            "trained. Do: leave it out, or give 1"
        ),
    ),
    "M577": Explanation(
        title="megatron-bridge is not there",
        meaning=(
            "`--megatron-to-hf-mode bridge` converts weights by the package megatron-bridge, which is not installed, or cannot be "
            "imported because something that it imports is missing or of another version."
        ),
        remedy=(
            'Install it with `pip install "miles-megatron[bridge]"`, in a version for the installed megatron-core and '
            "transformers, and what it needs, such as Transformer Engine. Or set `--megatron-to-hf-mode raw`, which needs neither."
        ),
        example=(
            "M577 miles-megatron: --megatron-to-hf-mode bridge needs megatron-bridge: it is not installed. Do: pip install "
            '"miles-megatron[bridge]", or set it to raw'
        ),
    ),
    "M578": Explanation(
        title="What megatron-bridge does not convert",
        meaning=(
            "`--megatron-to-hf-mode bridge` goes with a critic, with layers of multi-token prediction or with `--model-name`: "
            "megatron-bridge knows neither this package's value heads nor its layers of multi-token prediction, and goes by the "
            "config's own architecture."
        ),
        remedy="Set `--megatron-to-hf-mode raw`, or leave out what the message names.",
        example=(
            "M578 miles-megatron: --megatron-to-hf-mode bridge does not go with a critic: --advantage-estimator ppo trains one, "
            "and megatron-bridge does not know value heads. Do: leave it out, or set it to raw"
        ),
    ),
    "M579": Explanation(
        title="A model that megatron-bridge does not know",
        meaning="megatron-bridge cannot read the model's config, has no conversion of its architecture, or none of a parameter.",
        remedy="Set `--megatron-to-hf-mode raw`, or install a version of megatron-bridge that knows the model.",
        example=(
            "M579 miles-megatron: megatron-bridge cannot convert models/mimo: Model architecture 'MiMoForCausalLM' is not yet "
            "supported. Do: leave --megatron-to-hf-mode out, or set it to raw"
        ),
    ),
}
