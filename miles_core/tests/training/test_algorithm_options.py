"""Options that all algorithms share, in the trainer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from miles_core.config import AlgorithmOptions, RolloutOptions, TrainingOptions
from miles_core.errors import RunError
from miles_core.options import Config
from miles_core.protocols import AdvantageOutputs, ModelSpec
from miles_core.testing import ToyBackend, random_rows
from miles_core.training.rows import RankBatch
from miles_core.training.split import split_rows
from miles_core.training.trainer import Trainer

ROWS = random_rows(12)


def batch_of(rows=ROWS, steps: int = 1, rollout_id: int = 0) -> RankBatch:
    return split_rows(rows, data_size=1, steps=steps, balance=False, rollout_id=rollout_id)[0]


@pytest.fixture
def make(kit):
    def make(loss=None, advantage=None, optimizer: str = "sgd", training=None, **algorithm) -> Trainer:
        config = Config.of(
            TrainingOptions(**{"lr": 0.1, "clip_grad": 0.0, "micro_batch_size": 5, **(training or {})}),
            AlgorithmOptions(**algorithm),
            RolloutOptions(logprob_diff_limit=100.0, logprob_diff_warn=100.0),
        )
        backend = ToyBackend(config, optimizer=optimizer)
        copies = ("ref", "old_actor") if algorithm.get("keep_old_actor") else ("ref",)
        backend.setup(ModelSpec(checkpoint=kit.checkpoint, train_steps=10, copies=copies))
        return Trainer(config, backend, loss or kit.KeepingLoss(), advantage or kit.RewardAdvantage())

    return make


def weights(trainer: Trainer, name: str = "actor") -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.backend._sets[name].parameters()])


def test_normalize_advantages(make, kit) -> None:
    seen = []

    class Recording(kit.KeepingLoss):
        def __call__(self, inputs):
            seen.append((inputs.advantages, inputs.mask))
            return super().__call__(inputs)

    # One rollout, two optimizer steps: the statistics are those of the rollout.
    make(Recording(), normalize_advantages=True).train(batch_of(steps=2))
    advantages = torch.cat([a[m != 0] for a, m in seen]).double()
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantages.var()) == pytest.approx(1, abs=1e-5)


def test_use_rollout_logprobs(make, kit) -> None:
    seen = []

    class Recording(kit.KeepingLoss):
        def __call__(self, inputs):
            seen.append((inputs.old_log_probs, inputs.rollout_log_probs))
            return super().__call__(inputs)

    rows = [dataclasses.replace(r, rollout_log_probs=np.full(r.response_length, -1.5, np.float32)) for r in ROWS]
    trainer = make(Recording(), use_rollout_logprobs=True)
    trainer.train(batch_of(rows, steps=3))
    assert trainer.backend.passes == [], "nothing is computed anew"
    assert all(torch.equal(*pair) for pair in seen)
    with pytest.raises(RunError, match="M411"):
        trainer.train(
            batch_of([*rows[:-1], dataclasses.replace(rows[-1], rollout_log_probs=None, mask=np.ones_like(rows[-1].mask))])
        )


def test_keep_old_actor(make, kit) -> None:
    trainer = make(keep_old_actor=True)
    first = trainer.train(batch_of())
    # The actor has moved on, the engines serve what it was.
    second = trainer.train(batch_of())
    assert trainer.backend.passes == ["old_actor", "old_actor"]
    assert second.rollout_metrics["rollout/log_probs"] == pytest.approx(first.rollout_metrics["rollout/log_probs"], abs=1e-6)
    assert abs(second.metrics_per_step[0]["train/ppo_kl"]) > 1e-3
    assert first.metrics_per_step[0]["train/ppo_kl"] == pytest.approx(0, abs=1e-6)


def test_ref_update_interval(make, kit) -> None:
    class Anchored(kit.KeepingLoss):
        needs = kit.KeepingLoss.needs | {"ref_log_probs"}

    trainer = make(Anchored(), ref_update_interval=2)
    start = weights(trainer, "ref").clone()
    trainer.train(batch_of(rollout_id=0))
    assert torch.equal(weights(trainer, "ref"), start)
    trainer.train(batch_of(rollout_id=1))
    assert torch.equal(weights(trainer, "ref"), weights(trainer))
    assert not torch.equal(weights(trainer), start)


def test_reset_optimizer_states(make) -> None:
    def moved(**options) -> torch.Tensor:
        trainer = make(optimizer="adam", **options)
        trainer.train(batch_of())
        before = weights(trainer).clone()
        trainer.train(batch_of(random_rows(12, seed=5), rollout_id=1))
        return weights(trainer) - before, trainer.backend.gradients

    fresh, gradients = moved(reset_optimizer_states=True)
    kept, _ = moved()
    gradient = torch.cat([g.flatten() for g in gradients.values()])
    # Adam's first step is the learning rate times the gradient's sign, whatever its size.
    assert torch.allclose(fresh[gradient.abs() > 1e-4], -0.1 * gradient[gradient.abs() > 1e-4].sign(), atol=1e-4)
    assert not torch.allclose(kept, fresh, atol=1e-3)


def test_use_rollout_entropy(make, kit) -> None:
    class Anchored(kit.KeepingLoss):
        needs = kit.KeepingLoss.needs | {"ref_log_probs"}

    trainer = make(Anchored(), use_rollout_entropy=True)
    report = trainer.train(batch_of())
    assert trainer.backend.passes == ["ref", "actor"]
    metrics = report.rollout_metrics
    assert metrics["rollout/old_entropy"] == pytest.approx(metrics["rollout/ref_entropy"])
    assert 0 < metrics["rollout/old_entropy"] < np.log(200)
    assert "rollout/old_entropy" not in make(Anchored()).train(batch_of()).rollout_metrics


@pytest.mark.parametrize("layout", ["thd", "bshd"])
def test_recompute_loss_function(make, furthest, layout: str) -> None:
    plain, recomputing = (make(training={"qkv_format": layout, "recompute_loss_function": on}) for on in (False, True))
    reports = [trainer.train(batch_of()) for trainer in (plain, recomputing)]
    assert furthest(recomputing.backend.gradients, plain.backend.gradients) == 0
    assert reports[0].metrics_per_step == reports[1].metrics_per_step


def test_recomputing_keeps_less(kit) -> None:
    from torch.autograd.graph import saved_tensors_hooks

    from miles_core.training.batch import ModelOutputs
    from miles_core.training.objective import SAMPLE_WEIGHT, WEIGHT, Objective
    from miles_core.training.pack import pack
    from miles_core.training.table import RowTable

    def saved(recompute: bool) -> int:
        table = RowTable(ROWS)
        fields = {"mask": table.mask, WEIGHT: table.mask, SAMPLE_WEIGHT: table.mask, "advantages": table.mask}
        batch = pack(table, list(range(len(ROWS))), fields, layout="thd", multiple=1)
        log_probs = -torch.rand(table.response_tokens).requires_grad_()
        kept = []
        with saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            Objective(kit.KeepingLoss(), recompute=recompute)(batch, ModelOutputs(log_probs=log_probs))
        return sum(kept)

    assert saved(True) < 0.5 * saved(False)


def test_loss_length_divisor(make, kit) -> None:
    trainer = make(kit.KeepingLoss(), loss_length_divisor=50)
    metrics = trainer.train(batch_of()).metrics_per_step[0]
    loss = metrics["train/loss"]
    # On policy the loss of a token is minus its advantage.
    wanted = -sum(row.reward * float(row.mask.sum()) for row in ROWS) / 50 / len(ROWS)
    assert loss == pytest.approx(wanted, rel=1e-5)
    plain = make(kit.KeepingLoss()).train(batch_of()).metrics_per_step[0]
    assert metrics["train/pg_loss"] == pytest.approx(plain["train/pg_loss"], rel=1e-5), "metrics stay means over samples"


def test_without_an_estimator_nothing_is_scored(make, kit) -> None:
    class Likelihood(kit.KeepingLoss):
        needs = frozenset()

        def __call__(self, inputs):
            from miles_core.protocols import LossOutputs

            return LossOutputs(-inputs.log_probs)

    trainer = make(Likelihood())
    trainer.advantage = None
    trainer.train(batch_of(steps=2))
    assert trainer.backend.passes == []


def test_outputs_of_an_estimator_stay_the_returns(make, kit) -> None:
    class Both(kit.RewardAdvantage):
        def __call__(self, inputs):
            values = super().__call__(inputs).advantages
            return AdvantageOutputs(values, values + 3)

    begun = make(advantage=Both(), normalize_advantages=True).begin(batch_of())
    wanted = np.concatenate([np.full(row.response_length, row.reward + 3, np.float32) for row in ROWS])
    assert np.allclose(begun.fields["returns"][:-1], wanted), "whitening is for advantages alone"
