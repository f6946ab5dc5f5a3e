"""M301 to M349: data and checkpoints that the user gives."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

DATA: dict[str, Explanation] = {
    "M340": Explanation(
        title="A checkpoint that cannot be read",
        meaning=(
            "The HF directory has no config or no weights, a file of it is damaged, or its weights are of a type that "
            "cannot be trained."
        ),
        remedy=("Give a whole HF directory: config.json and safetensors weights. Fetch it again when a file is cut off."),
        example=(
            "M340 miles-fsdp 0.1.0: no weights in models/tiny: neither model.safetensors nor model.safetensors.index.json "
            "is there. Do: give an HF directory with safetensors weights"
        ),
    ),
    "M341": Explanation(
        title="Attention kernels that cannot be used",
        meaning="`--attn-implementation` asks for kernels that are not installed, or that do not run on this device.",
        remedy="Install them, or choose `sdpa`, which is always there.",
        example=(
            "M341 miles-fsdp 0.1.0: --attn-implementation flash_attention_2 cannot be used: flash-attn is not installed. "
            "Do: pip install flash-attn, or choose sdpa"
        ),
    ),
    "M342": Explanation(
        title="Weights of another model",
        meaning=(
            "The names of the weights are not those that the model of config.json has: some are missing, or some are left over."
        ),
        remedy="Give a checkpoint whose config.json belongs to its weights.",
        example=(
            "M342 miles-fsdp 0.1.0: the weights in models/tiny do not fit Qwen3ForCausalLM: 2 missing (model.norm.weight, "
            "lm_head.weight): config and weights are of different models. Do: give a checkpoint whose config.json belongs "
            "to its weights"
        ),
    ),
    "M343": Explanation(
        title="Weights of another shape",
        meaning="A tensor of the checkpoint has another shape than the model of config.json needs.",
        remedy="Give a checkpoint whose config.json belongs to its weights.",
        example=(
            "M343 miles-fsdp 0.1.0: model.embed_tokens.weight in models/tiny has shape [64, 32], the model needs [128, "
            "32]: config and weights are of different models. Do: give a checkpoint whose config.json belongs to its "
            "weights"
        ),
    ),
    "M344": Explanation(
        title="Training state that cannot be resumed",
        meaning="The saved state of model and optimizer is of another model or optimizer, or is damaged.",
        remedy=("Resume with the model and optimizer that the state was saved with, or start anew from an exported HF directory."),
        example=(
            "M344 miles-fsdp 0.1.0: cannot resume from runs/a/checkpoints/rollout_3: it was saved with --optimizer sgd. "
            "Do: resume with the same optimizer"
        ),
    ),
    "M345": Explanation(
        title="A model that the backend cannot train",
        meaning=(
            "transformers cannot build a causal language model of that config, or packing samples would let them see each "
            "other in a layer that keeps a state along the row."
        ),
        remedy=("Use a checkpoint that AutoModelForCausalLM supports; for layers with a state set `--qkv-format bshd`."),
        example=(
            "M345 miles-fsdp 0.1.0: packed samples would leak into each other in layers of type mamba: --qkv-format is "
            "thd and jamba keeps a state along the row. Do: set --qkv-format bshd"
        ),
    ),
    "M346": Explanation(
        title="A critic that the backend cannot train",
        meaning="The backend has no value head.",
        remedy="Train the critic with another backend, or choose an algorithm without one.",
        example=("M346 miles-fsdp 0.1.0: the fsdp backend has no value head. Do: train the critic with another backend"),
    ),
    "M347": Explanation(
        title="A learning-rate schedule that cannot be meant",
        meaning="`--lr-warmup-fraction` is not in 0 to 1, or `--min-lr` is above `--lr`.",
        remedy="Give a share from 0 to 1, and a `--min-lr` at or below `--lr`.",
        example="M347 miles-fsdp 0.1.0: --lr-warmup-fraction is 10.0: it is a share. Do: give 0 to 1",
    ),
}
