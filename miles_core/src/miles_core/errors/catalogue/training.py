"""M410 to M439: training."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

TRAINING: dict[str, Explanation] = {
    "M410": Explanation(
        title="A loss without what it needs",
        meaning=(
            "The loss or the advantage estimator needs inputs that this run does not make: advantages without an "
            "estimator, or a name that the trainer does not know."
        ),
        remedy="Name an estimator by `--advantage-estimator` or `--algo`, or choose another loss.",
        example=(
            "M410 acme.loss: AcmeLoss needs advantages, and there is no advantage estimator. Do: name one by "
            "--advantage-estimator or --algo"
        ),
    ),
    "M411": Explanation(
        title="A sample without rollout log-probs",
        meaning=(
            "The loss compares with the engine's log-probs, and a sample has none: the response was not made by an "
            "engine, or a function of the rollout dropped them."
        ),
        remedy="Keep the log-probs in your rollout function, or choose a loss that does without.",
        example=(
            "M411 acme.loss: AcmeLoss needs rollout log-probs, and a sample has none: the response was not made by an "
            "engine, or the rollout function dropped them"
        ),
    ),
    "M412": Explanation(
        title="A loss or estimator with an unusable answer",
        meaning="The plugin returned another shape, another type, or other metrics than its protocol says.",
        remedy="Return one term per response token, unreduced, and the same metrics for every input.",
        example=(
            "M412 acme.loss: the loss AcmeLoss cannot be used: its loss has shape [1] for 812 tokens. Do: return one term "
            "per response token, unreduced, and the same metrics for every input"
        ),
    ),
    "M413": Explanation(
        title="Rollout and training disagree",
        meaning=(
            "The log-probs of the same tokens, by the engine and by the trainer, differ by more than "
            "`--logprob-diff-limit` on average: the engine serves other weights, uses another temperature, or computes "
            "the model differently."
        ),
        remedy=(
            "Run with `--check-weight-update-equal`, compare temperatures, and look at `train_rollout_logprob_abs_diff` "
            "from the first step on."
        ),
        example=(
            "M413 miles-core 0.1.0: rollout 12: rollout and training log-probs differ by 1.8 on average, 9.1 at most: "
            "more than --logprob-diff-limit 1. Do: run with --check-weight-update-equal"
        ),
    ),
    "M414": Explanation(
        title="The first step is off policy",
        meaning=(
            "Right after a rollout the policy that trains is the one that is compared with, so that every ratio must be "
            "1; two passes with the same weights disagree."
        ),
        remedy="Turn dropout off; try `--qkv-format bshd` or another attention implementation.",
        example=(
            "M414 miles-core 0.1.0: rollout 0: the first optimizer step is off policy, its log-ratio is 0.2 on average "
            "instead of 0. Do: turn dropout off, and try --qkv-format bshd or another attention implementation"
        ),
    ),
    "M415": Explanation(
        title="Advantages that are not finite",
        meaning="A reward or a log-prob is infinite or not a number, and with it the advantages.",
        remedy="Check the reward and the weights.",
        example=(
            "M415 miles_algos.advantages.grpo: Grpo gave advantages that are not finite: a reward or a log-prob is not finite"
        ),
    ),
    "M416": Explanation(
        title="Gradients that are not finite",
        meaning="Several optimizer steps in a row were skipped because the gradient had infinities or NaN.",
        remedy="Resume from an earlier state with a lower `--lr`, and check the rewards.",
        example=(
            "M416 miles-core 0.1.0: rollout 8: 4 optimizer steps in a row had a gradient that is not finite: the loss or "
            "the weights hold infinities or NaN. Do: resume from an earlier state with a lower --lr, and check the "
            "rewards"
        ),
    ),
    "M417": Explanation(
        title="A sample that cannot be trained on",
        meaning="Token ids, mask and log-probs of a sample do not have matching lengths, or it has no token.",
        remedy="Correct the function that made or changed the sample.",
        example=("M417 miles-core 0.1.0: sample 81 cannot be trained on: its loss mask has 5 entries for 7 response tokens"),
    ),
    "M418": Explanation(
        title="Options that the trainer cannot use",
        meaning="A worker got options that validation refuses: a run was started without validation.",
        remedy="Correct the option that the line names.",
        example="M418 miles-core 0.1.0: --use-dynamic-batch-size has no cap. Do: set --max-tokens-per-gpu",
    ),
    "M419": Explanation(
        title="Fewer samples than optimizer steps",
        meaning="What a rollout left over is fewer samples than it has optimizer steps.",
        remedy="Lower `--num-steps-per-rollout`, raise `--rollout-batch-size`, or check what leaves samples out.",
        example=(
            "M419 miles-core 0.1.0: rollout 3 has 1 samples for 2 optimizer steps. Do: lower --num-steps-per-rollout, "
            "raise --rollout-batch-size, or check what leaves samples out"
        ),
    ),
    "M430": Explanation(
        title="A loss without gradient",
        meaning=(
            "The scalar to differentiate does not depend on the model's outputs. A loss plugin that leaves masked tokens "
            "out does that when all are masked."
        ),
        remedy="In the loss, multiply by the mask in place of leaving tokens out.",
        example=(
            "M430 miles-fsdp 0.1.0: the loss does not depend on the model's outputs: the loss returned a tensor without a "
            "gradient. Do: multiply masked terms by the log-probs' mask in place of leaving them out"
        ),
    ),
    "M431": Explanation(
        title="The actor is offloaded",
        meaning=("A pass was asked for while the model's weights were in host memory: a fault of the caller, not of the options."),
        remedy="Report it with the log; a loop of your own calls `onload()` first.",
        example="M431 miles-fsdp 0.1.0: the actor is offloaded. Do: call onload() first",
    ),
    "M432": Explanation(
        title="Unknown weights",
        meaning="A pass named a set of weights that was not set up: a fault of the caller, not of the options.",
        remedy="Report it with the log; a loop of your own names the copy in `ModelSpec.copies`.",
        example="M432 miles-fsdp 0.1.0: there are no weights named ref: set up: actor",
    ),
    "M437": Explanation(
        title="Attention that does not know its context-parallel ranks",
        meaning="The model keeps keyword arguments from its attention layers, which with `--context-parallel-size` need them.",
        remedy="Set `--context-parallel-size 1`, or train another model.",
        example=(
            "M437 miles-fsdp 0.1.0: OddAttention attends without knowing the context-parallel ranks: the model does not hand its "
            "keyword arguments down to attention. Do: set --context-parallel-size 1"
        ),
    ),
}
