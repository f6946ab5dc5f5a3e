"""M200 to M239: options and validation."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

OPTIONS: dict[str, Explanation] = {
    "M200": Explanation(
        title="Several errors",
        meaning="Validation found more than one mistake. Each has its own line and code; nothing was started.",
        remedy="Correct them all; every line says what to do.",
        example="M200 2 errors",
    ),
    "M201": Explanation(
        title="Unknown option",
        meaning=(
            "The command line has a flag that neither core nor a selected plugin declares. A plugin's options exist only "
            "when the run names the plugin."
        ),
        remedy=(
            "Correct the flag; `miles run --help` shows core's and the selected plugins', `--help-all` those of every "
            "installed plugin."
        ),
        example="M201 argument 7: there is no option --rollout-tempreature. Do: did you mean --rollout-temperature?",
    ),
    "M202": Explanation(
        title="A flag without a value, or a value without a flag",
        meaning="A flag that needs a value has none, or a value stands where a flag is expected.",
        remedy="Write every value after its flag; a list takes several values after one flag.",
        example="M202 argument 5: --lr has no value. Do: write --lr VALUE",
    ),
    "M203": Explanation(
        title="A value that the option does not take",
        meaning=(
            "The value is of another type than the option's, or none of its choices. The line names the place: argument, "
            "environment variable, or file and line."
        ),
        remedy="Give a value as `miles run --help` shows it.",
        example="M203 config.yaml:4: --lr cannot be 'fast': expected a number. Do: see miles run --help",
    ),
    "M204": Explanation(
        title="An option given twice in one place",
        meaning="One source sets the same option twice, by one name or by two.",
        remedy="Keep one of the two.",
        example=(
            "M204 argument 9: --train-backend is given twice: --backend at argument 3 and --train-backend at argument 9. "
            "Do: keep one"
        ),
    ),
    "M205": Explanation(
        title="A config file that cannot be used",
        meaning=("The file of `--config` does not exist, cannot be read, is not YAML, or is not a mapping of options to values."),
        remedy="Correct the file at the line that is named; keys are flags without dashes in front.",
        example=(
            "M205 run.yaml:3: the config file run.yaml cannot be used: mapping values are not allowed here. Do: correct the YAML"
        ),
    ),
    "M206": Explanation(
        title="Unknown key in a config file",
        meaning="The config file has a key that is no option of core or of a selected plugin.",
        remedy="Correct the key, or remove it; keys are flags without dashes in front.",
        example="M206 run.yaml:3: there is no option 'learning_rate'. Do: see miles run --help",
    ),
    "M207": Explanation(
        title="A recipe that sets what does not exist",
        meaning=(
            "The algorithm recipe of `--algo` has a default for an option that does not exist, or a value that the option "
            "does not take. That is a fault of the recipe's plugin."
        ),
        remedy="Report it to the plugin's author, or choose another algorithm.",
        example=(
            "M207 acme-algos 1.0: the recipe 'acme' sets 'eps_clip_hi': there is no such option; did it mean "
            "'eps_clip_high'? Do: report it to the author of acme-algos, or choose another algorithm"
        ),
    ),
    "M208": Explanation(
        title="A required option is missing",
        meaning="The run cannot be planned without the option, and nothing else says what it would.",
        remedy="Give the option; the line says what it is for.",
        example="M208 --rollout-batch-size is missing. Do: give the number of prompts in a rollout",
    ),
    "M209": Explanation(
        title="A number out of range",
        meaning=("An option's number is legal by type and cannot be meant: negative, zero, or in contradiction with another one."),
        remedy="Give a number in the range that the line names.",
        example="M209 --n-samples-per-prompt 0 (argument 9) is out of range. Do: give 1 or more",
    ),
    "M210": Explanation(
        title="Batch sizes that do not divide",
        meaning=(
            "A rollout has `--rollout-batch-size` x `--n-samples-per-prompt` samples, which must be a whole number of "
            "optimizer steps of `--global-batch-size` samples; no sample is dropped to make it fit."
        ),
        remedy="Take one of the sizes that the line suggests.",
        example=(
            "M210 --global-batch-size 100 (argument 11) does not divide a rollout: 32 prompts x 8 samples = 256. Do: take 64 or 128"
        ),
    ),
    "M211": Explanation(
        title="Steps that do not divide over ranks",
        meaning=(
            "The samples of an optimizer step must divide evenly over the data-parallel ranks, and the ranks over the "
            "model-parallel sizes."
        ),
        remedy="Change the global batch size or the number of ranks, as the line suggests.",
        example=(
            "M211 an optimizer step of 10 samples does not divide over 4 data-parallel ranks: 10 % 4 = 2. Do: take a "
            "number of ranks that divides 10: 2 or 5"
        ),
    ),
    "M212": Explanation(
        title="An epoch shorter than a rollout",
        meaning="The prompts of all epochs together are fewer than one rollout takes.",
        remedy="Take more epochs, more prompts, or a smaller `--rollout-batch-size`.",
        example=(
            "M212 --num-epoch 1 (argument 5) makes no rollout: 1 x 20 prompts are fewer than one rollout of 32. Do: take "
            "--num-epoch 2, or at most 20 for --rollout-batch-size"
        ),
    ),
    "M213": Explanation(
        title="Dynamic batches without a cap",
        meaning="`--use-dynamic-batch-size` fills micro-batches up to a number of tokens, and no number is given.",
        remedy="Give `--max-tokens-per-gpu`.",
        example="M213 --use-dynamic-batch-size needs --max-tokens-per-gpu. Do: give the most tokens of a micro-batch",
    ),
    "M214": Explanation(
        title="Dynamic batches of padded rows",
        meaning=("`--use-dynamic-batch-size` counts tokens, and with `--qkv-format bshd` padding would go over the cap."),
        remedy="Take `--qkv-format thd`, or leave `--use-dynamic-batch-size` out.",
        example=(
            "M214 --qkv-format bshd (argument 3) does not go with --use-dynamic-batch-size: padded batches count samples, "
            "not tokens. Do: take --qkv-format thd"
        ),
    ),
    "M215": Explanation(
        title="Saving without a place",
        meaning="An option of saving is set, and `--save` is not.",
        remedy="Give `--save DIR`, or leave the option out.",
        example="M215 --save-interval 10 (argument 3) needs --save: nothing says where to save. Do: give --save DIR",
    ),
    "M216": Explanation(
        title="Evaluation sets that cannot be used",
        meaning=(
            "Evaluation is asked for without a set, `--eval-prompt-data` is not a list of names and files, two sets have "
            "one name, or `--eval-config` cannot be read."
        ),
        remedy="Write `--eval-prompt-data NAME FILE [NAME FILE ...]`, each name once.",
        example=(
            "M216 --eval-interval 5 (argument 3) has nothing to evaluate on: no evaluation set is given. Do: give "
            "--eval-prompt-data NAME FILE"
        ),
    ),
    "M217": Explanation(
        title="Lengths that the model does not have",
        meaning="A length limit is above the context of the model, or a prompt limit leaves no token for a response.",
        remedy="Lower the limit to what the line names.",
        example=(
            "M217 --rollout-max-context-len 65536 (argument 5) is more than the model takes: max_position_embeddings is "
            "32768. Do: take at most 32768"
        ),
    ),
    "M218": Explanation(
        title="Not enough room for the placement",
        meaning="Trainers and engines take more CPUs, GPUs or nodes than there are, or than a node has.",
        remedy="Ask for fewer, use `--colocate`, or start on more machines.",
        example=("M218 the run takes 12 CPU slots: this machine has 8. Do: take fewer engines or trainers, or --colocate"),
    ),
    "M219": Explanation(
        title="GPUs of engines that do not divide",
        meaning="The GPUs for generation are not a whole number of engines of `--rollout-num-gpus-per-engine`.",
        remedy="Take one of the numbers that the line suggests.",
        example=(
            "M219 --rollout-num-gpus-per-engine 4 (argument 7) does not divide --rollout-num-gpus 6: 6 % 4 = 2. Do: take "
            "4 or 8 GPUs for generation"
        ),
    ),
    "M220": Explanation(
        title="A plugin that does not run on the device",
        meaning="The record of the backend or engine does not offer the device of the run.",
        remedy="Choose another plugin, or another `--device`.",
        example=(
            "M220 miles-megatron 0.1.0: the backend plugin 'megatron' does not run on cpu: it offers cuda. Do: choose "
            "another backend plugin, or another --device"
        ),
    ),
    "M221": Explanation(
        title="Communication that the device does not have",
        meaning="nccl moves GPU memory and does not work on CPU.",
        remedy="Leave `--distributed-backend` out, or take `gloo`.",
        example=(
            "M221 --distributed-backend nccl (argument 3) does not work on CPU: nccl moves GPU memory. Do: leave it out, "
            "or take gloo"
        ),
    ),
    "M222": Explanation(
        title="GPUs that are not there",
        meaning="The run asks for GPUs, and this machine or cluster has none, or fewer.",
        remedy="Take `--device cpu`, ask for fewer, or check the driver.",
        example=("M222 --device cuda (argument 3) cannot be had: no GPU is visible. Do: take --device cpu, or check the driver"),
    ),
    "M223": Explanation(
        title="A folder that cannot be one",
        meaning="The path of a folder to write is a file, or a part of it is.",
        remedy="Give another path.",
        example="M223 --run-dir notes.txt (argument 3) cannot be a folder: that is a file. Do: give another path",
    ),
    "M224": Explanation(
        title="A port in use",
        meaning="Another process listens on a port that an engine is to serve on.",
        remedy="Give another `--rollout-engine-port`, leave it out to take free ports, or end the other process.",
        example=(
            "M224 --rollout-engine-port 30000 (argument 3) cannot be had: port 30001, of engine 1, is in use. Do: give another "
            "port, or leave the option out"
        ),
    ),
    "M225": Explanation(
        title="Two ways to average the loss",
        meaning="`--calculate-per-token-loss` and `--loss-length-divisor` both say what a sample's loss is divided by.",
        remedy="Leave one of them out.",
        example=(
            "M225 --loss-length-divisor 1024 (argument 5) does not go with --calculate-per-token-loss: both say what a sample's "
            "loss is divided by. Do: leave one of them out"
        ),
    ),
    "M226": Explanation(
        title="A loss without its advantages",
        meaning="`--disable-compute-advantages-and-returns` leaves out what the selected loss is made of.",
        remedy="Leave the option out, or take a loss that needs no advantages, such as `sft_loss` or `custom_loss`.",
        example=(
            "M226 --disable-compute-advantages-and-returns (argument 5) does not go with --loss-type policy_loss: that loss needs "
            "advantages. Do: leave it out, or take a loss that needs none"
        ),
    ),
    "M230": Explanation(
        title="A clip range that clips everything or nothing",
        meaning=(
            "`--eps-clip` is not in 0 to 1, or `--eps-clip-high` is negative or not finite: the ratio of new to old "
            "probability is clipped to 1 minus the one and 1 plus the other."
        ),
        remedy="Choose `--eps-clip` from 0 to 1 and `--eps-clip-high` of 0 or more, or leave them out.",
        example="M230 miles-algos 0.1.0: --eps-clip is 1.5: the lower clip is 1 minus it. Do: choose 0 to 1",
    ),
    "M231": Explanation(
        title="A dual clip at or below 1",
        meaning=(
            "`--eps-clip-c` bounds the loss of tokens with a negative advantage; at 1 or less it would cut tokens whose "
            "probability did not change."
        ),
        remedy="Choose more than 1, such as 3, or leave it out.",
        example=(
            "M231 miles-algos 0.1.0: --eps-clip-c is 0.9: at 1 or less the dual clip would cut the loss of tokens whose "
            "probability did not change. Do: choose more than 1, such as 3, or leave it out"
        ),
    ),
    "M232": Explanation(
        title="An option of an algorithm that has no effect",
        meaning=(
            "An option is set, and the switch that it belongs to is not, such as `--kl-loss-coef` without `--use-kl-loss`; or "
            "another option takes its place."
        ),
        remedy="Give the switch that the line names, or leave the option out.",
        example=(
            "M232 miles-algos 0.1.0: --kl-loss-coef has no effect: no KL term is in the loss. Do: add --use-kl-loss, or "
            "leave --kl-loss-coef out"
        ),
    ),
    "M233": Explanation(
        title="A coefficient that cannot be meant",
        meaning="`--kl-loss-coef` or `--kl-coef` is negative, or a coefficient is not finite.",
        remedy="Choose a finite number; for coefficients of a KL divergence 0 or more.",
        example=(
            "M233 miles-algos 0.1.0: --kl-loss-coef is -0.1: it would push the policy away from the reference. Do: choose 0 or more"
        ),
    ),
    "M234": Explanation(
        title="A filter that drops every group",
        meaning=("The filter `nonzero_std` keeps groups whose rewards differ, and with one sample per prompt no group has that."),
        remedy="Sample more responses per prompt, or take the filter out.",
        example=(
            "M234 miles-algos 0.1.0: filter nonzero_std with --n-samples-per-prompt 1 drops every group: the rewards of "
            "one sample do not differ. Do: sample more responses per prompt, or take the filter out"
        ),
    ),
    "M235": Explanation(
        title="Group rewards of groups of one",
        meaning=(
            "The advantages `grpo`, `gspo`, `rloo` and `reinforce_plus_plus_baseline` compare a reward with the mean of its group, "
            "and the mean of one sample is its own reward: every advantage would be 0."
        ),
        remedy="Set `--n-samples-per-prompt` to 2 or more, or give `--disable-rewards-normalization`.",
        example=(
            "M235 miles-algos 0.1.0: advantage grpo with --n-samples-per-prompt 1 makes every reward 0: the mean of a "
            "group of one is its own reward. Do: set --n-samples-per-prompt to 2 or more, or "
            "--disable-rewards-normalization"
        ),
    ),
    "M238": Explanation(
        title="A limit of a reward that cannot be meant",
        meaning="`--reward-timeout` is not above 0, or `--reward-workers` is below 1.",
        remedy="Give seconds above 0, and 1 worker or more.",
        example="M238 miles-rewards 0.1.0: --reward-timeout is 0.0. Do: give seconds, more than 0",
    ),
    "M239": Explanation(
        title="A reward without labels",
        meaning=("The reward compares responses with labels, and `--label-key` is not given, so that no sample has one."),
        remedy="Name the key of the ground truth in the prompt data.",
        example=(
            "M239 miles-rewards 0.1.0: reward math has nothing to compare with: --label-key is not given, so no sample "
            "has a label. Do: name the key of the ground truth: --label-key answer"
        ),
    ),
}
