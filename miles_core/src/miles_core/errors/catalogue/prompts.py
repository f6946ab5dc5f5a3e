"""M310 to M329: prompts that cannot be tokenised or trained on."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

PROMPTS: dict[str, Explanation] = {
    "M310": Explanation(
        title="No tokenizer",
        meaning="The checkpoint has no tokenizer that transformers can load, or its files are incomplete.",
        remedy="Add the tokenizer's files (tokenizer.json, tokenizer_config.json) to the checkpoint.",
        example="M310 models/tiny: there is no tokenizer. Do: add the tokenizer's files to the checkpoint",
    ),
    "M311": Explanation(
        title="No chat template",
        meaning="`--apply-chat-template` is set, and the tokenizer has no template.",
        remedy="Leave the option out, or add a chat_template to the tokenizer.",
        example=(
            "M311 models/base: the tokenizer has no chat template. Do: leave --apply-chat-template out, or add a "
            "chat_template to the tokenizer"
        ),
    ),
    "M312": Explanation(
        title="A template applied twice",
        meaning="A prompt already holds the control tokens that the chat template would write.",
        remedy="Leave `--apply-chat-template` out, or give the bare text.",
        example=(
            "M312 train.jsonl:1: a prompt has been through a chat template already: it holds '<|im_start|>', which the "
            "template writes. Do: leave --apply-chat-template out, or give the bare text"
        ),
    ),
    "M313": Explanation(
        title="A prompt that the template refuses",
        meaning="The chat template raised an error for a row's messages.",
        remedy="Check the row's messages and `--apply-chat-template-kwargs`.",
        example=(
            "M313 train.jsonl:9: the chat template refuses a prompt: TemplateError: roles must alternate. Do: check the "
            "row's messages and --apply-chat-template-kwargs"
        ),
    ),
    "M314": Explanation(
        title="Messages without a template",
        meaning="A prompt is a list of messages, and no template turns it into text.",
        remedy="Set `--apply-chat-template`, or give prompts as text.",
        example=(
            "M314 train.jsonl:1: a prompt is a list of messages, but no template is applied. Do: set "
            "--apply-chat-template, or give prompts as text"
        ),
    ),
    "M315": Explanation(
        title="No prompt short enough",
        meaning="Every prompt has more tokens than the limit on prompt length allows; prompts are never cut off.",
        remedy="Raise `--rollout-max-prompt-len` or `--rollout-max-context-len`.",
        example=(
            "M315 train.jsonl: every prompt is longer than 8 tokens: the shortest has 21. Do: raise the limit on prompt length"
        ),
    ),
    "M316": Explanation(
        title="A run state of other data",
        meaning="The saved state has seen another number of prompts than there are now, so its place in them means nothing.",
        remedy="Resume with the same data and limits, or start afresh without `--load`.",
        example=(
            "M316 the prompts changed: 100 rows, and the saved state has seen 200. Do: resume with the same --prompt-data "
            "and --rollout-max-prompt-len, or start afresh without --load"
        ),
    ),
    "M317": Explanation(
        title="Nothing to fine-tune on",
        meaning="Every row is too long, or has no response.",
        remedy="Check `--label-key` and the limit on length.",
        example="M317 sft.jsonl: no row can be trained on: all 12 rows are too long or have no response",
    ),
    "M318": Explanation(
        title="A row without a response",
        meaning="Supervised fine-tuning needs a response: a label, or messages that end with an assistant turn.",
        remedy="Name the response's key with `--label-key`.",
        example=(
            "M318 sft.jsonl:4: a row has a prompt and no response to train on. Do: name the response's key with "
            "--label-key, or give messages that end with an assistant turn"
        ),
    ),
    "M319": Explanation(
        title="A template that rewrites earlier turns",
        meaning="The text of a conversation is not the start of the text of the longer one, so tokens cannot be told apart.",
        remedy="Use a template that only appends, or train on `--input-key` and `--label-key`.",
        example=(
            "M319 sft.jsonl:2: the chat template rewrites earlier turns, so that it cannot be told which tokens are whose. "
            "Do: use a template that only appends, or train on --input-key and --label-key"
        ),
    ),
    "M321": Explanation(
        title="An unknown evaluation setting",
        meaning="The file of `--eval-config` gives a set something that no set has.",
        remedy="Correct the name; the line shows the nearest.",
        example="M321 eval.yaml: an evaluation set has no setting 'temprature'. Do: did you mean 'temperature'?",
    ),
    "M322": Explanation(
        title="A Parquet file without pyarrow",
        meaning="Parquet files are read with pyarrow, which miles does not install.",
        remedy="Install pyarrow, or convert the file to JSON Lines.",
        example=(
            "M322 train.parquet: a Parquet file needs the library pyarrow: it is not installed. Do: pip install pyarrow, or "
            "convert the file to JSON Lines"
        ),
    ),
    "M323": Explanation(
        title="Tools that are no list",
        meaning="What a row has under `--tool-key` is neither a list of tool definitions nor one as JSON text.",
        remedy="Repair the row, or name another key with `--tool-key`.",
        example=(
            "M323 train.jsonl:4: 'tools' is dict, not a list of tools. Do: give a list of tool definitions, or one as JSON text"
        ),
    ),
    "M324": Explanation(
        title="Media of a prompt that do not fit it",
        meaning=(
            "The prompt has more or fewer places (`<image>`) than the row has items under the key of `--multimodal-keys`, or an "
            "item is no path, URL or base64 text, or its file cannot be read."
        ),
        remedy="Repair the row. A path is relative to the data file.",
        example=(
            "M324 train.jsonl:4: the prompt has 2 places for images and the row has 1. Do: write <image> once for each item "
            "under 'images'"
        ),
    ),
    "M325": Explanation(
        title="Media that the run cannot use",
        meaning="`--multimodal-keys` names no kind of media, or the run has no chat template, or an engine for text alone.",
        remedy="Name image, video or audio; set `--apply-chat-template`; take an engine for such models.",
        example=(
            'M325 miles-core 0.1.0: --multimodal-keys {"image": "images"} (argument 9) cannot be used: the engine transformers '
            "takes token ids alone. Do: take an engine for such models"
        ),
    ),
    "M326": Explanation(
        title="A generate function that breaks its contract",
        meaning=(
            "The function of `--custom-generate-function-path` failed, or left a sample whose tokens changed or whose mask, "
            "log-probs and versions do not fit its tokens."
        ),
        remedy="Append with `await generate()` and `generate.observe()`, which keep everything in step.",
        example=(
            "M326 --custom-generate-function-path mine.turns: the function changed tokens or numbers that a sample had. Do: only "
            "append: generate() and generate.observe() do"
        ),
    ),
    "M327": Explanation(
        title="A dynamic batch with a size",
        meaning="`--use-dynamic-global-batch-size` makes one optimizer step of all samples that a rollout has.",
        remedy="Leave out `--num-steps-per-rollout` and `--global-batch-size`, or the option itself.",
        example=(
            "M327 miles-core 0.1.0: --use-dynamic-global-batch-size (argument 9) does not go with --num-steps-per-rollout 2 "
            "(argument 11): it makes one step of all samples that a rollout has. Do: leave one of them out, or set "
            "--num-steps-per-rollout 1"
        ),
    ),
    "M328": Explanation(
        title="Too few samples for an optimizer step",
        meaning="A function made a rollout, and it has fewer samples than `--global-batch-size`, or than there are ranks.",
        remedy="Return more samples, lower `--global-batch-size`, or set `--use-dynamic-global-batch-size`.",
        example=(
            "M328 miles-core: a rollout has 6 samples, and an optimizer step takes 8. Do: return more samples, lower "
            "--global-batch-size, or set --use-dynamic-global-batch-size"
        ),
    ),
}
