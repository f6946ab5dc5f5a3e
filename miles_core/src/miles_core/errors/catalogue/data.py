"""M301 to M349: data and checkpoints that the user gives."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

DATA: dict[str, Explanation] = {
    "M301": Explanation(
        title="Prompt data that cannot be read",
        meaning="The file of prompts does not exist or cannot be opened.",
        remedy="Check the path and its permissions.",
        example="M301 train.jsonl: --prompt-data cannot be read: there is no such file. Do: check the path",
    ),
    "M302": Explanation(
        title="Prompt data without rows",
        meaning="The file of prompts has no row, or the slice takes none.",
        remedy="Give a file with a JSON object on each line.",
        example=("M302 train.jsonl: --prompt-data is empty: it has 0 rows. Do: give a file with a JSON object on each line"),
    ),
    "M303": Explanation(
        title="A row that is not JSON",
        meaning="A line of the file is not a JSON object in UTF-8.",
        remedy="Write one JSON object on each line, or remove the row; the line names file and row.",
        example=(
            "M303 train.jsonl:17: it is not JSON: Expecting ',' delimiter. Do: write one JSON object on each line, or "
            "remove the row"
        ),
    ),
    "M304": Explanation(
        title="A row without the key",
        meaning="A row lacks the key that `--input-key` or `--label-key` names.",
        remedy="Correct the option or the row; the line shows the keys that the row has.",
        example="M304 train.jsonl:3: it has no key 'question'; it has prompt, answer. Do: give --input-key prompt",
    ),
    "M305": Explanation(
        title="A slice that is none",
        meaning="What stands behind the @ of a file is no slice of rows.",
        remedy="Write FILE@[a:b] with 0 <= a < b.",
        example="M305 --prompt-data train.jsonl@[5] has no legal slice. Do: write FILE@[a:b] with 0 <= a < b",
    ),
    "M306": Explanation(
        title="A row of the wrong shape",
        meaning="A prompt is neither text nor chat messages, or the metadata is not an object.",
        remedy="Repair the row that the line names.",
        example="M306 train.jsonl:9: 'metadata' is list, not an object. Do: repair the row",
    ),
    "M330": Explanation(
        title="A checkpoint folder that is none",
        meaning="The folder of `--hf-checkpoint` does not exist or is a file. Models are not downloaded by name.",
        remedy="Give a local HF directory.",
        example=("M330 models/tiny: --hf-checkpoint cannot be used: there is no such folder. Do: give a local HF directory"),
    ),
    "M331": Explanation(
        title="A checkpoint without a config",
        meaning="The folder has no config.json, or one that cannot be read.",
        remedy="Give an HF directory, or fetch it again.",
        example=(
            "M331 models/tiny: --hf-checkpoint is no HF checkpoint: it has no config.json. Do: give a folder that "
            "save_pretrained wrote"
        ),
    ),
    "M332": Explanation(
        title="A checkpoint without weights",
        meaning="The folder has no safetensors weights, or its index names files that are not there.",
        remedy="Fetch the checkpoint again, whole.",
        example=(
            "M332 models/tiny: --hf-checkpoint has no usable weights: model-00002-of-00002.safetensors is missing. Do: "
            "fetch it again"
        ),
    ),
    "M333": Explanation(
        title="A checkpoint without a tokenizer",
        meaning="The folder has no file of a tokenizer.",
        remedy="Save the model's tokenizer into it, with tokenizer.save_pretrained.",
        example=(
            "M333 models/tiny: --hf-checkpoint has no tokenizer: it has none of tokenizer.json. Do: save the model's "
            "tokenizer into it, with tokenizer.save_pretrained"
        ),
    ),
    "M334": Explanation(
        title="A tokenizer without a chat template",
        meaning="`--apply-chat-template` is given, and the tokenizer has no template.",
        remedy="Add a chat_template.jinja to the folder, or leave `--apply-chat-template` out.",
        example=(
            "M334 models/tiny: --apply-chat-template has no template to apply: neither chat_template.jinja nor "
            "tokenizer_config.json has one. Do: add a chat_template.jinja to it, or leave --apply-chat-template out"
        ),
    ),
    "M336": Explanation(
        title="A folder of run states that is none",
        meaning="The path of `--load` is a file, or the folder of one run state instead of the one that holds them.",
        remedy="Give the folder of `--save`.",
        example=("M336 states.txt: --load states.txt (argument 3) cannot be used: it is a file. Do: give the folder of --save"),
    ),
    "M338": Explanation(
        title="Context parallelism that does not fit",
        meaning=(
            "`--context-parallel-size` ranks share the tokens of each row. It must divide the training ranks; models may have full "
            "and sliding-window softmax attention only; and it does not go with routing replay, `--true-on-policy-mode`, or "
            "`--attn-implementation eager`."
        ),
        remedy="Take a size that divides the ranks, or 1, or leave out the option that contradicts it.",
        example=(
            "M338 miles-fsdp 0.1.0: --context-parallel-size 3 does not fit the run: 4 ranks of the actor are no multiple of it. "
            "Do: change the number of ranks or this size"
        ),
    ),
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
    "M347": Explanation(
        title="A learning-rate schedule that cannot be meant",
        meaning="`--lr-warmup-fraction` is not in 0 to 1, or `--min-lr` is above `--lr`.",
        remedy="Give a share from 0 to 1, and a `--min-lr` at or below `--lr`.",
        example="M347 miles-fsdp 0.1.0: --lr-warmup-fraction is 10.0: it is a share. Do: give 0 to 1",
    ),
}
