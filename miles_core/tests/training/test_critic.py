"""Training a critic around a toy model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from miles_core.config import CriticOptions, TrainingOptions
from miles_core.errors import RunError, UsageError
from miles_core.options import Config
from miles_core.testing import random_rows, toy_reference
from miles_core.training.critic import critic_config
from miles_core.training.exchange import ByIndex, TokenArrays, critic_rows
from miles_core.training.split import split_rows
from miles_core.training.table import RowTable

ROWS = random_rows(16)


def batch_of(rows, steps=1):
    return split_rows(critic_rows(rows), data_size=1, steps=steps, balance=False, rollout_id=3)[0]


def arrays(rows, numbers) -> TokenArrays:
    flat = np.concatenate([*(numbers[row.index] for row in rows), np.zeros(1, np.float32)])
    return TokenArrays.of(RowTable(rows), flat)


def trained(kit, steps=1, **options):
    trainer = kit.critic(**options)
    trainer.values(batch_of(ROWS, steps))
    # What the actor's ranks say is in another order, and divided in another way.
    report = trainer.train([kit.returns(ROWS[9:][::-1]), kit.returns(ROWS[:9])])
    return trainer, report


def oracle(kit, per_token: bool) -> tuple[dict[str, torch.Tensor], float, float]:
    """Gradients and loss by the formula, sample after sample in double precision, and the explained variance."""
    model = toy_reference(kit.checkpoint).critic().double()
    with torch.no_grad():
        model.head.weight.copy_(torch.linspace(-0.2, 0.2, 16))
    wanted = ByIndex([kit.returns(ROWS)], name="returns", source="actor")
    total, every = torch.zeros((), dtype=torch.float64), []
    tokens = sum(max(float(row.mask.sum()), 1.0) for row in ROWS)
    for row in ROWS:
        values = model(torch.from_numpy(row.tokens.astype(np.int64)))[-row.response_length - 1 : -1, 0]
        mask, returns = torch.from_numpy(row.mask).double(), torch.from_numpy(wanted.of(row)).double()
        share = tokens if per_token else max(float(mask.sum()), 1.0) * len(ROWS)
        total = total + (mask * (values - returns).square()).sum() / share
        every += [(r, r - v) for r, v, m in zip(returns.tolist(), values.tolist(), mask.tolist(), strict=True) if m]
    total.backward()
    returns, errors = np.array(every).T
    return {n: p.grad for n, p in model.named_parameters()}, total.item(), 1 - errors.var() / returns.var()


SPLITS = [
    {"micro_batch_size": 1},
    {"micro_batch_size": 16},
    {"micro_batch_size": 5, "qkv_format": "bshd"},
    {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 40},
    {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 12, "log_probs_max_tokens_per_gpu": 100},
]


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_gradients_and_metrics_are_the_formulas_however_a_step_is_split(kit, furthest, per_token, split):
    wanted, loss, explained = oracle(kit, per_token)
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        trainer, report = trained(kit, per_token=per_token, dtype=dtype, **split)
        assert furthest(trainer.backend.gradients, {n: g.to(dtype) for n, g in wanted.items()}) < bound
        (metrics,) = report.metrics_per_step
        assert metrics["train/critic-loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["train/critic-value_loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["train/critic-explained_variance"] == pytest.approx(explained, abs=1e-4)
        assert metrics["train/critic-moved"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["train/critic-lr-pg_0"] == 0.05
        assert report.rollout_metrics == {}


def test_old_values_are_those_before_the_first_step(kit):
    _, report = trained(kit, steps=4)
    moved = [metrics["train/critic-moved"] for metrics in report.metrics_per_step]
    assert moved[0] == pytest.approx(0.0, abs=1e-6)
    assert min(moved[1:]) > 1e-3
    assert report.tokens == sum(len(row.tokens) for row in ROWS if row.mask.any())


def test_values_do_not_depend_on_the_temperature_and_are_those_of_each_sample_alone(kit):
    trainer = kit.critic()
    found = ByIndex([trainer.values(batch_of(ROWS))], name="values", source="critic")
    model = trainer.backend._sets["actor"]
    for row in ROWS:
        with torch.no_grad():
            wanted = model(torch.from_numpy(row.tokens.astype(np.int64)))[-row.response_length - 1 : -1, 0]
        assert found.of(row) == pytest.approx(wanted.numpy(), abs=1e-5)


def test_a_fully_masked_rollout_makes_no_step(kit):
    rows = [dataclasses.replace(row, mask=np.zeros_like(row.mask)) for row in ROWS]
    trainer = kit.critic()
    trainer.values(batch_of(rows))
    report = trainer.train([kit.returns(rows)])
    assert report.skipped
    assert trainer.backend.optimizer_steps == 0


def test_the_explained_variance_rises(kit):
    """Returns that depend on the tokens that are there to be seen can be learned."""
    returns = {row.index: (row.tokens[-row.response_length - 1 : -1] > 15).astype(np.float32) for row in ROWS}
    trainer = kit.critic(optimizer="adam", lr=0.03, clip_grad=1.0)
    explained = []
    for _ in range(60):
        trainer.values(batch_of(ROWS))
        report = trainer.train([arrays(ROWS, returns)])
        explained.append(report.metrics_per_step[0]["train/critic-explained_variance"])
    assert explained[0] < 0.1
    assert explained[25] > 0.2
    assert explained[-1] > 0.9


def test_returns_that_are_missing_are_named(kit):
    trainer = kit.critic()
    trainer.values(batch_of(ROWS))
    with pytest.raises(RunError, match=rf"M420 .*sample {ROWS[3].index} has no returns"):
        trainer.train([kit.returns(ROWS[:3]), kit.returns(ROWS[4:])])
    short = dataclasses.replace(kit.returns(ROWS[:1]), lengths=np.array([1]), flat=np.zeros(1, np.float32))
    with pytest.raises(RunError, match="M420"):
        ByIndex([short], name="values", source="critic").attached(batch_of([r for r in ROWS if r.response_length > 1][:1]))


def test_values_that_are_not_finite_stop_the_run(kit):
    trainer = kit.critic()
    with torch.no_grad():
        trainer.backend._sets["actor"].head.bias.fill_(float("nan"))
    with pytest.raises(RunError, match=r"M421 .*rollout 3"):
        trainer.values(batch_of(ROWS))


def test_a_loss_of_a_policy_is_refused(kit):
    with pytest.raises(UsageError, match=r"M422 .*needs advantages, old_log_probs"):
        kit.critic(kit.ClippedLoss())


def test_the_critic_has_its_own_rate_and_warm_up():
    training = TrainingOptions(lr=1e-3, lr_warmup_iters=7, lr_warmup_fraction=0.5, weight_decay=0.1)
    plain = critic_config(Config.of(training, CriticOptions())).get(TrainingOptions)
    assert (plain.lr, plain.lr_warmup_iters, plain.lr_warmup_fraction, plain.weight_decay) == (1e-3, 0, None, 0.1)
    own = critic_config(Config.of(training, CriticOptions(critic_lr=5e-6, critic_lr_warmup_iters=3))).get(TrainingOptions)
    assert (own.lr, own.lr_warmup_iters) == (5e-6, 3)


def test_a_critic_is_sent_no_more_than_it_looks_at():
    row = dataclasses.replace(ROWS[0], rollout_log_probs=np.zeros(ROWS[0].response_length, np.float32), extras={"x": ROWS[0].mask})
    (sent,) = critic_rows([row])
    assert sent.rollout_log_probs is None
    assert not sent.extras
    assert sent.tokens is row.tokens


def test_a_constant_divisor_and_a_fresh_optimizer_are_the_critics_too(kit):
    _, plain = trained(kit, per_token=True)
    _, divided = trained(kit, algorithm={"loss_length_divisor": 5})
    tokens = sum(max(float(row.mask.sum()), 1.0) for row in ROWS)
    whole = plain.metrics_per_step[0]["train/critic-loss"] * tokens
    assert divided.metrics_per_step[0]["train/critic-loss"] == pytest.approx(whole / (5 * len(ROWS)), rel=1e-5)
    moves = {}
    for reset in (False, True):
        trainer = kit.critic(optimizer="adam", algorithm={"reset_optimizer_states": reset})
        for _ in range(2):
            before = dict(trainer.backend.export_weights())["head.bias"].clone()
            trainer.values(batch_of(ROWS))
            trainer.train([kit.returns(ROWS)])
        moves[reset] = float((dict(trainer.backend.export_weights())["head.bias"] - before).abs())
    # Adam's first step is as long as its rate.
    assert moves[True] == pytest.approx(0.05, rel=1e-3)
    assert moves[False] != pytest.approx(0.05, rel=1e-3)
