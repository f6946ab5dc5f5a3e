"""M270 to M274 and M420 to M422: the critic."""

from __future__ import annotations

from miles_core.errors.catalogue.explanation import Explanation

CRITIC_OPTIONS: dict[str, Explanation] = {
    "M270": Explanation(
        title="A backend that cannot train a critic",
        meaning="The advantage estimator needs values, which a critic learns, and the training backend has no value head.",
        remedy="Train with another backend (`miles plugins info` lists capabilities), or choose an algorithm without a critic.",
        example=(
            "M270 acme-backend 1.0: the backend plugin 'acme' cannot train a critic: advantage ppo needs one. Do: train with "
            "another backend, or choose an algorithm without a critic"
        ),
    ),
    "M271": Explanation(
        title="Options of the critic that contradict each other or cannot be",
        meaning="A learning rate below the one that it decays to, or a value clip that is not above 0.",
        remedy="Change the option that the line names.",
        example=(
            "M271 miles-core 0.1.0: --critic-lr 1e-07 (argument 9) is below --min-lr 1e-06: a decay goes down. Do: lower --min-lr"
        ),
    ),
    "M272": Explanation(
        title="A loss in the wrong place",
        meaning="A loss of values trains a critic only (`--critic-loss-type`), and a loss of a policy trains the actor only.",
        remedy="Name the loss where it belongs.",
        example=(
            "M272 miles-algos 0.1.0: the loss 'value_loss' cannot train the actor: it is one of a critic. Do: name another by "
            "--loss-type"
        ),
    ),
    "M273": Explanation(
        title="A critic with a smaller vocabulary",
        meaning="The critic reads the ids that the policy sampled, and the policy can sample ids that the critic does not have.",
        remedy="Take a critic whose `vocab_size` is at least the policy's, with the same tokenizer.",
        example=(
            "M273 models/small/config.json: --critic-load models/small (argument 9) has a smaller vocabulary than the policy: it "
            "reads 151936 tokens and the policy can sample 152064. Do: take a critic whose vocab_size is at least the policy's"
        ),
    ),
    "M274": Explanation(
        title="A run state with a critic, or without one",
        meaning="The state of `--load` was saved by a run whose algorithm had a critic and this one's has none, or the reverse.",
        remedy="Resume with the algorithm of that run, or start fresh from its exported model.",
        example=(
            "M274 miles-core 0.1.0: the run state is of another algorithm: state/step_00000003 was saved without a critic, which "
            "this run has. Do: take the algorithm of that run"
        ),
    ),
}

CRITIC_RUN: dict[str, Explanation] = {
    "M420": Explanation(
        title="Values or returns of a sample are missing",
        meaning=(
            "Actor and critic exchange numbers by the samples' indices. One of them has a sample that the other did not say "
            "anything about, or of another length."
        ),
        remedy="Report it: it is a mistake in miles, or in a plugin that changes the samples.",
        example="M420 miles-core 0.1.0: sample 17 has no values: the critic gave those of 32 other samples",
    ),
    "M421": Explanation(
        title="Values that are not finite",
        meaning="The critic's forward pass gave infinities or NaN. Its weights or its checkpoint hold some.",
        remedy="Resume from an earlier state with a lower `--critic-lr`; check the checkpoint of `--critic-load`.",
        example=(
            "M421 miles-core 0.1.0: rollout 3: the critic's values are not finite: its weights or its checkpoint hold infinities "
            "or NaN. Do: resume from an earlier state with a lower --critic-lr, and check --critic-load"
        ),
    ),
    "M422": Explanation(
        title="A critic's loss that needs what a critic has not",
        meaning="A critic gives `values`, `old_values` and `returns` to its loss, and nothing of the policy.",
        remedy="Choose another loss by `--critic-loss-type`.",
        example="M422 acme_losses.value: Quantile needs advantages: a critic gives old_values, returns, values",
    ),
}
