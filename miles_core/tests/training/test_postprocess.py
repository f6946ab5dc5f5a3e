"""A function of the rollout's data, between the passes and the first optimizer step."""

from __future__ import annotations

import numpy as np
import pytest

from miles_core.errors import RunError
from miles_core.testing import random_rows
from miles_core.training.split import split_rows

ROWS = random_rows(6)


def train(kit, function, **options):
    batch = split_rows(ROWS, data_size=1, steps=1, balance=False, rollout_id=3)[0]
    trainer = kit.trainer(options.pop("loss", kit.KeepingLoss()), function=function, **options)
    report = trainer.train(batch)
    return trainer.backend.gradients, report


def test_it_sees_every_row_with_log_probs_and_advantages(kit):
    seen = []
    _, report = train(kit, lambda rollout_id, data: seen.append((rollout_id, data)))
    ((rollout_id, data),) = seen
    assert rollout_id == 3
    assert data["sample_indices"] == [row.index for row in ROWS]
    assert [tokens.tolist() for tokens in data["tokens"]] == [row.tokens.tolist() for row in ROWS]
    for key in ("log_probs", "old_log_probs", "advantages", "returns", "loss_masks", "rollout_log_probs"):
        assert [len(values) for values in data[key]] == [row.response_length for row in ROWS], key
    assert all((log_probs < 0).all() for log_probs in data["log_probs"])
    for row, advantages in zip(ROWS, data["advantages"], strict=True):
        assert np.all(advantages == np.float32(row.reward))
    assert report.rollout_metrics


def test_looking_changes_nothing(kit, furthest):
    plain, _ = train(kit, None)
    looked, _ = train(kit, lambda rollout_id, data: None)
    assert furthest(looked, plain) < 1e-5


@pytest.mark.parametrize("in_place", [True, False])
def test_changed_advantages_are_trained_on(kit, furthest, in_place):
    def double(rollout_id, data):
        if in_place:
            for advantages in data["advantages"]:
                advantages *= 2
        else:
            data["advantages"] = [(advantages * 2).tolist() for advantages in data["advantages"]]

    plain, _ = train(kit, None)
    doubled, _ = train(kit, double)
    assert furthest(doubled, {name: 2 * gradient for name, gradient in plain.items()}) < 1e-5


def test_a_change_counts_with_a_loss_that_leaves_zero_advantages_out(kit):
    """Rows of zero advantages are not left out before the function could change them, nor after."""

    class NoAdvantage(kit.RewardAdvantage):
        def __call__(self, inputs):
            outputs = super().__call__(inputs)
            return type(outputs)(outputs.advantages * 0, outputs.returns)

    def one(rollout_id, data):
        data["advantages"] = [np.ones_like(advantages) for advantages in data["advantages"]]

    gradients, _ = train(kit, one, loss=kit.ClippedLoss(), advantage=NoAdvantage())
    assert any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["loss_masks"][0].fill(0.5), "changed loss_masks"),
        (lambda data: data["advantages"].pop(), "changed the lengths of advantages"),
        (lambda data: data["returns"][0].fill(np.nan), "returns that are not finite"),
        (lambda data: data.pop("log_probs"), "no usable log_probs"),
    ],
)
def test_a_broken_contract_ends_the_run(kit, change, words):
    with pytest.raises(RunError, match="M407") as caught:
        train(kit, lambda rollout_id, data: change(data))
    assert words in caught.value.line()
