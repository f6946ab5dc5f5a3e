"""M278, M279 and M491: ``--true-on-policy-mode``."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

TRUE_ON_POLICY_OPTIONS: dict[str, Explanation] = {
    "M278": Explanation(
        title="No true on-policy mode there",
        meaning=(
            "`--true-on-policy-mode` promises that engine and trainer compute the same log-probs to the last bit. The backend, the "
            "engine, the device, the precision or another option cannot keep that promise."
        ),
        remedy=(
            "Take `--backend fsdp --engine transformers --device cpu` in fp32, or leave the mode out and correct for the "
            "difference, for instance with `--use-tis`."
        ),
        example=(
            "M278 miles-core 0.1.0: --true-on-policy-mode (argument 9) does not run on cuda: only computation on CPUs is known to "
            "be the same in every batch. Do: leave --true-on-policy-mode out, or take --device cpu"
        ),
    ),
    "M279": Explanation(
        title="A model that cannot be truly on policy",
        meaning=(
            "`--true-on-policy-mode` replaces every operation of a model whose result depends on the rest of the batch. This model "
            "has operations that it does not know."
        ),
        remedy="Take a model of a kind that the line names, or leave the mode out.",
        example=(
            "M279 models/moe/config.json: moe cannot run in --true-on-policy-mode (argument 9): its model_type is qwen3_moe, and "
            "the operations of llama, mistral, qwen2, qwen3 are known. Do: leave --true-on-policy-mode out"
        ),
    ),
}

TRUE_ON_POLICY_RUN: dict[str, Explanation] = {
    "M491": Explanation(
        title="Not truly on policy",
        meaning=(
            "`--true-on-policy-mode` is on, and log-probs of the rollout differ from those of the trainer before its first "
            "optimizer step. Either the engine served other weights, or the two processes compute differently."
        ),
        remedy=(
            "Run with `--check-weight-update-equal`. If the weights are equal, see that engine and trainer run the same PyTorch on "
            "the same kind of processor, and that nothing changes the rollout's samples or log-probs on the way."
        ),
        example=(
            "M491 miles-core 0.1.0: rollout 2: rollout and training log-probs differ by 3.1e-07 on average, 2.4e-06 at most: "
            "--true-on-policy-mode promises a difference of exactly 0. Do: run with --check-weight-update-equal, and see that "
            "engine and trainer run the same PyTorch on the same kind of processor"
        ),
    ),
}
