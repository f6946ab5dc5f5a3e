from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from miles_core.config import RolloutOptions
from miles_core.errors import RunError, UsageError
from miles_core.protocols import AdvantageOutputs, LossOutputs
from miles_core.testing import ToyBackend, random_rows, toy_reference
from miles_core.training.split import split_rows

ROWS = random_rows(16)


def batch_of(rows, steps=1):
    return split_rows(rows, data_size=1, steps=steps, balance=False, rollout_id=3)[0]


def reference_log_probs(checkpoint, rows):
    model = toy_reference(checkpoint)
    found = []
    for row in rows:
        ids = torch.from_numpy(row.tokens.astype(np.int64))
        every = torch.log_softmax(model(ids)[-row.response_length - 1 : -1], -1)
        found.append(every.gather(1, ids[-row.response_length :, None])[:, 0].detach())
    return found


def with_model_log_probs(checkpoint, rows, shift=0.0):
    """Rows as an engine with the model's own weights would have made them."""
    log_probs = reference_log_probs(checkpoint, rows)
    return [dataclasses.replace(row, rollout_log_probs=lp.numpy() + shift) for row, lp in zip(rows, log_probs, strict=True)]


SPLITS = [
    {"micro_batch_size": 1},
    {"micro_batch_size": 16},
    {"micro_batch_size": 5},
    {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 40},
    {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 12, "log_probs_max_tokens_per_gpu": 100},
]


@pytest.mark.parametrize("per_token", [False, True])
def test_gradients_do_not_depend_on_how_a_step_is_split(kit, furthest, per_token):
    wanted = None
    for layout, split, chunk in itertools.product(("thd", "bshd"), SPLITS, (-1, 3)):
        if layout == "bshd" and "max_tokens_per_gpu" in split:
            continue
        trainer = kit.trainer(per_token=per_token, qkv_format=layout, log_probs_chunk_size=chunk, **split)
        report = trainer.train(batch_of(ROWS))
        found = trainer.backend.gradients, report.metrics_per_step[0]
        wanted = wanted or found
        assert furthest(found[0], wanted[0]) < 1e-5, (layout, split)
        assert found[1] == pytest.approx(wanted[1], rel=1e-4, abs=1e-6), (layout, split)


def test_metrics_of_the_backends_own_are_logged(kit, monkeypatch):
    step = ToyBackend.train_step
    own = {"mtp_loss": 1.5}
    monkeypatch.setattr(ToyBackend, "train_step", lambda *args: dataclasses.replace(step(*args), metrics=own))
    report = kit.trainer().train(batch_of(ROWS, steps=2))
    assert [each["train/mtp_loss"] for each in report.metrics_per_step] == [1.5, 1.5]


@pytest.mark.parametrize("per_token", [False, True])
def test_loss_and_gradient_follow_the_formula(kit, furthest, per_token):
    trainer = kit.trainer(kit.KeepingLoss(), per_token=per_token, micro_batch_size=4)
    report = trainer.train(batch_of(ROWS))
    model = toy_reference(kit.checkpoint)
    total = 0.0
    tokens = sum(max(row.mask.sum(), 1) for row in ROWS)
    for row in ROWS:
        ids = torch.from_numpy(row.tokens.astype(np.int64))
        every = torch.log_softmax(model(ids)[-row.response_length - 1 : -1], -1)
        log_probs = every.gather(1, ids[-row.response_length :, None])[:, 0]
        ratio = (log_probs - log_probs.detach()).exp()
        divisor = tokens if per_token else max(row.mask.sum(), 1) * len(ROWS)
        total = total - (ratio * row.reward * torch.from_numpy(row.mask)).sum() / divisor
    total.backward()
    assert furthest(trainer.backend.gradients, {name: p.grad for name, p in model.named_parameters()}) < 1e-5
    metrics = report.metrics_per_step[0]
    assert metrics["train/loss"] == pytest.approx(total.item(), abs=1e-6)
    assert metrics["train/loss"] == pytest.approx(metrics["train/pg_loss"])
    norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
    assert metrics["train/grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert metrics["train/lr-pg_0"] == 0.1


def test_one_step_needs_no_pass_and_several_need_one(kit):
    single, several = kit.trainer(), kit.trainer()
    single.train(batch_of(ROWS))
    report = several.train(batch_of(ROWS, steps=4))
    assert single.backend.passes == []
    assert several.backend.passes == ["actor"]
    assert several.backend.optimizer_steps == 4
    assert len(report.metrics_per_step) == 4
    assert report.metrics_per_step[0]["train/ppo_kl"] == pytest.approx(0, abs=1e-6)
    assert report.metrics_per_step[0]["train/pg_clipfrac"] == 0
    assert abs(report.metrics_per_step[3]["train/ppo_kl"]) > 1e-5
    assert set(report.seconds) == {"log_probs", "advantages", "data_preprocess", "actor_train"}


def test_old_log_probs_are_those_before_the_first_step(kit):
    seen = []

    class Recording(kit.KeepingLoss):
        def __call__(self, inputs):
            seen.append(inputs.old_log_probs)
            return super().__call__(inputs)

    kit.trainer(Recording(), micro_batch_size=8).train(batch_of(ROWS, steps=2))
    wanted = [lp for row, lp in zip(ROWS, reference_log_probs(kit.checkpoint, ROWS), strict=True) if row.mask.any()]
    assert torch.allclose(torch.cat(seen), torch.cat(wanted), atol=1e-5)


def test_reference_log_probs_are_those_of_the_copy(kit):
    seen = []

    class Anchored(kit.KeepingLoss):
        needs = kit.KeepingLoss.needs | {"ref_log_probs"}

        def __call__(self, inputs):
            seen.append((inputs.ref_log_probs, inputs.log_probs.detach()))
            return super().__call__(inputs)

    trainer = kit.trainer(Anchored(), micro_batch_size=16)
    trainer.train(batch_of(ROWS))
    report = trainer.train(batch_of(ROWS))
    assert trainer.backend.passes == ["ref", "ref"]
    assert torch.allclose(*seen[0], atol=1e-5)
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.allclose(*seen[1], atol=1e-4)
    assert "rollout/ref_log_probs" in report.rollout_metrics
    assert "ref_log_probs" in report.seconds


def test_an_estimator_gets_what_it_needs(kit):
    class Penalised(kit.RewardAdvantage):
        needs = frozenset({"old_log_probs", "ref_log_probs"})

        def __call__(self, inputs):
            gap = inputs.old_log_probs - inputs.ref_log_probs
            plain = super().__call__(inputs).advantages
            return AdvantageOutputs(plain - gap, plain)

    trainer = kit.trainer(advantage=Penalised())
    report = trainer.train(batch_of(ROWS))
    assert trainer.backend.passes == ["ref", "actor"]
    assert report.rollout_metrics["rollout/advantages"] == pytest.approx(report.rollout_metrics["rollout/returns"], abs=1e-5)


class Precise(ToyBackend):
    """In double precision."""

    def __init__(self, config, **options):
        super().__init__(config, dtype=torch.float64, **options)


def flat_rewards(rows, zeros):
    return [dataclasses.replace(row, reward=0.0 if row.index in zeros else 1.0) for row in rows]


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_leaving_out_samples_without_advantage_changes_nothing(kit, furthest, per_token, steps):
    rows = flat_rewards(ROWS, zeros={0, 1, 2, 3, 9, 12, 13, 14, 15})
    reports, gradients = [], []
    for loss in (kit.ClippedLoss(), kit.KeepingLoss()):
        dynamic = {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 40}
        trainer = kit.trainer(loss, backend_class=Precise, per_token=per_token, **dynamic)
        reports.append(trainer.train(batch_of(rows, steps)))
        gradients.append(trainer.backend.gradients)
    assert furthest(*gradients) < 1e-6
    for fewer, every in zip(reports[0].metrics_per_step, reports[1].metrics_per_step, strict=True):
        assert fewer["train/trained_samples"] < every["train/trained_samples"]
        for name in ("train/loss", "train/pg_loss", "train/pg_clipfrac", "train/grad_norm"):
            assert fewer[name] == pytest.approx(every[name], abs=1e-6)
    assert reports[0].tokens < reports[1].tokens


def test_metrics_that_the_samples_left_out_would_have_are_averages_over_the_others(kit):
    class Constant(kit.ClippedLoss):
        def __call__(self, inputs):
            outputs = super().__call__(inputs)
            return LossOutputs(outputs.loss, {**outputs.metrics, "seven": torch.full_like(inputs.mask, 7.0)})

    rows = [row for row in flat_rewards(ROWS, zeros={0, 1, 2, 3}) if row.mask.any()]
    metrics = kit.trainer(Constant()).train(batch_of(rows)).metrics_per_step[0]
    assert metrics["train/trained_samples"] == len(rows) - 4
    assert metrics["train/seven"] == pytest.approx(7.0, rel=1e-6)


def test_a_rollout_without_information_changes_nothing(kit):
    trainer = kit.trainer()
    before = dict(trainer.backend.export_weights())
    before = {name: tensor.clone() for name, tensor in before.items()}
    report = trainer.train(batch_of(flat_rewards(ROWS, zeros=range(16)), steps=2))
    assert report.skipped
    assert report.tokens == 0
    assert trainer.backend.optimizer_steps == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.backend.export_weights())
    assert [m["train/trained_samples"] for m in report.metrics_per_step] == [0, 0]
    assert report.metrics_per_step[0]["train/pg_loss"] == 0


def test_only_the_steps_without_information_are_left_out(kit):
    trainer = kit.trainer()
    report = trainer.train(batch_of(flat_rewards(ROWS, zeros=range(8)), steps=2))
    assert not report.skipped
    assert trainer.backend.optimizer_steps == 1
    assert [m["train/trained_samples"] > 0 for m in report.metrics_per_step] == [False, True]
    assert report.metrics_per_step[1]["train/ppo_kl"] == pytest.approx(0, abs=1e-6)
    assert "train/train_rollout_logprob_abs_diff" in report.metrics_per_step[1]


@pytest.mark.parametrize("steps", [1, 2])
def test_rollout_and_training_log_probs_are_compared(kit, steps):
    rows = with_model_log_probs(kit.checkpoint, ROWS, shift=0.25)
    rows[3].rollout_log_probs[-1] -= 1.25
    reports = kit.trainer(kit.KeepingLoss()).train(batch_of(rows, steps)).metrics_per_step
    tokens = sum(float(row.mask.sum()) for row in rows)
    assert reports[0]["train/train_rollout_logprob_abs_diff"] == pytest.approx(0.25 + 0.75 / tokens, abs=1e-5)
    assert reports[0]["train/train_rollout_logprob_abs_diff_max"] == pytest.approx(1.0, abs=1e-5)
    assert all("train/train_rollout_logprob_abs_diff" not in report for report in reports[1:])


def test_without_rollout_log_probs_there_is_nothing_to_compare(kit):
    rows = [dataclasses.replace(row, rollout_log_probs=None) for row in ROWS]
    report = kit.trainer().train(batch_of(rows))
    assert "train/train_rollout_logprob_abs_diff" not in report.metrics_per_step[0]
    assert "rollout/rollout_log_probs" not in report.rollout_metrics


def test_rows_without_rollout_log_probs_stay_out_of_the_comparison(kit):
    rows = with_model_log_probs(kit.checkpoint, ROWS, shift=0.5)
    rows[0] = dataclasses.replace(rows[0], rollout_log_probs=None)
    metrics = kit.trainer().train(batch_of(rows)).metrics_per_step[0]
    assert metrics["train/train_rollout_logprob_abs_diff"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("shift", [0.5, float("nan")])
def test_log_probs_that_differ_too_much_stop_the_run(kit, steps, shift):
    rows = with_model_log_probs(kit.checkpoint, ROWS, shift)
    trainer = kit.trainer(rollout=RolloutOptions(logprob_diff_limit=0.4))
    with pytest.raises(RunError, match=r"M413 .*differ by .* on average") as raised:
        trainer.train(batch_of(rows, steps))
    assert raised.value.data["mean"] == pytest.approx(shift, nan_ok=True, abs=1e-5)
    assert trainer.backend.optimizer_steps == (1 if steps == 1 else 0)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("shift", [1e-4, float("nan")])
def test_in_true_on_policy_mode_any_difference_stops_the_run(kit, steps, shift):
    rows = with_model_log_probs(kit.checkpoint, ROWS, shift)
    kit.trainer().train(batch_of(rows if shift == 1e-4 else ROWS, steps))
    with pytest.raises(RunError, match=r"M491 .*differ by .*exactly 0") as raised:
        kit.trainer(true_on_policy_mode=True).train(batch_of(rows, steps))
    assert raised.value.data["largest"] == pytest.approx(shift, nan_ok=True, rel=0.1)


def test_log_probs_that_differ_are_warned_of(kit, caplog):
    rows = with_model_log_probs(kit.checkpoint, ROWS, 0.2)
    kit.trainer(rollout=RolloutOptions(logprob_diff_warn=0.1)).train(batch_of(rows))
    assert "rollout 3: rollout and training log-probs differ by 0.2 on average" in caplog.text


class Unsteady(ToyBackend):
    """Its two passes over the same tokens disagree, as with dropout."""

    error = 0.01

    def forward(self, micro_batches, request, *, weights="actor"):
        outputs = super().forward(micro_batches, request, weights=weights)
        return [dataclasses.replace(out, log_probs=out.log_probs + self.error) for out in outputs]


class VeryUnsteady(Unsteady):
    error = 0.5


def test_an_off_policy_first_step_is_warned_of_and_stops_the_run(kit, caplog):
    kit.trainer(backend_class=Unsteady).train(batch_of(ROWS, steps=2))
    assert "the log-ratio of the first optimizer step is 0.01 on average" in caplog.text
    with pytest.raises(RunError, match=r"M414 .*off policy, its log-ratio is 0.5"):
        kit.trainer(backend_class=VeryUnsteady).train(batch_of(ROWS, steps=2))


def test_rollout_metrics_are_sums_over_counts(kit):
    rows = with_model_log_probs(kit.checkpoint, ROWS)
    metrics = kit.trainer(kit.KeepingLoss()).train(batch_of(rows, steps=2)).rollout_metrics
    graded = [row for row in rows if not math.isnan(row.raw_reward)]
    assert len(graded) < len(rows)
    assert metrics["rollout/raw_reward"] == pytest.approx(sum(row.raw_reward for row in graded) / len(graded))
    assert metrics["rollout/response_lengths"] == sum(row.response_length for row in rows) / len(rows)
    assert metrics["rollout/total_lengths"] == sum(len(row.tokens) for row in rows) / len(rows)
    assert metrics["rollout/truncated"] == sum(row.truncated for row in rows) / len(rows)
    means = [float((row.rollout_log_probs * row.mask).sum() / row.mask.sum()) for row in graded]
    for name in ("rollout_log_probs", "log_probs"):
        assert metrics[f"rollout/{name}"] == pytest.approx(sum(means) / len(means), abs=1e-5)
    assert metrics["rollout/advantages"] == pytest.approx(sum(row.reward for row in graded) / len(graded), abs=1e-6)
    single = kit.trainer(kit.KeepingLoss()).train(batch_of(rows)).rollout_metrics
    assert single == pytest.approx(metrics, abs=1e-5)


def test_samples_above_the_token_cap_are_counted(kit, caplog):
    trainer = kit.trainer(use_dynamic_batch_size=True, max_tokens_per_gpu=10)
    metrics = trainer.train(batch_of(ROWS)).rollout_metrics
    assert metrics["rollout/oversize_samples"] == sum(len(row.tokens) > 10 for row in ROWS)
    assert "longer than --max-tokens-per-gpu" in caplog.text
    assert all(len(b.rows) == 1 or b.num_tokens <= 10 for b in trainer.backend.micro_batches)


def test_entropy_is_measured_when_the_loss_asks_for_it(kit):
    class Curious(kit.KeepingLoss):
        needs = kit.KeepingLoss.needs | {"entropy"}

        def __call__(self, inputs):
            outputs = super().__call__(inputs)
            assert inputs.entropy.requires_grad
            return outputs

    assert 0 < kit.trainer(Curious()).train(batch_of(ROWS)).metrics_per_step[0]["train/entropy"] < math.log(32)
    assert "train/entropy" not in kit.trainer().train(batch_of(ROWS)).metrics_per_step[0]


def test_supervised_rows_train_without_an_estimator(kit):
    class Likelihood:
        needs = frozenset()

        def __call__(self, inputs):
            assert inputs.advantages is None
            return LossOutputs(-inputs.log_probs)

    trainer = kit.trainer(Likelihood())
    trainer.advantage = None
    losses = [trainer.train(batch_of(ROWS, steps=2)).metrics_per_step[0]["train/loss"] for _ in range(5)]
    assert trainer.backend.passes == []
    assert losses[-1] < losses[0]


def test_gradients_that_stay_broken_stop_the_run(kit):
    class Broken(kit.KeepingLoss):
        def __call__(self, inputs):
            return LossOutputs(inputs.log_probs * float("inf"))

    trainer = kit.trainer(Broken())
    for _ in range(9):
        assert trainer.train(batch_of(ROWS)).metrics_per_step[0]["train/skipped_step"] == 1
    with pytest.raises(RunError, match="M416"):
        trainer.train(batch_of(ROWS))


def test_a_loss_that_reduces_is_refused(kit):
    class Scalar(kit.KeepingLoss):
        def __call__(self, inputs):
            return LossOutputs(inputs.log_probs.mean())

    with pytest.raises(RunError, match=r"M412 .*unreduced"):
        kit.trainer(Scalar()).train(batch_of(ROWS))


def test_advantages_must_be_finite(kit):
    rows = [dataclasses.replace(row, reward=float("inf")) for row in ROWS]
    with pytest.raises(RunError, match="M415"):
        kit.trainer().train(batch_of(rows))


def test_needs_that_cannot_be_met_are_refused(kit):
    class Critical(kit.KeepingLoss):
        needs = frozenset({"values"})

    class Weighted(kit.KeepingLoss):
        needs = frozenset({"rollout_log_probs"})

    with pytest.raises(UsageError, match=r"M410 .*Critical needs values"):
        kit.trainer(Critical())
    rows = [dataclasses.replace(ROWS[0], rollout_log_probs=None), *ROWS[1:]]
    with pytest.raises(RunError, match="M411"):
        kit.trainer(Weighted()).train(batch_of(rows))
    with pytest.raises(UsageError, match=r"M418 .*--rollout-temperature"):
        kit.trainer(rollout=RolloutOptions(rollout_temperature=0.0))


class FirstStage(ToyBackend):
    """A pipeline stage before the last: it takes part in passes and steps, and sees no outputs."""

    @property
    def parallel(self):
        return dataclasses.replace(super().parallel, computes_loss=False, reports=False)

    def forward(self, micro_batches, request, *, weights="actor"):
        super().forward(micro_batches, request, weights=weights)

    def train_step(self, micro_batches, request, loss):
        return super().train_step(micro_batches, request, lambda batch, outputs: outputs.log_probs.sum())


@pytest.mark.parametrize("zeros", [range(4), range(8), range(16)])
def test_stages_without_outputs_make_the_same_passes_and_steps(kit, zeros):
    rows = flat_rewards(ROWS, zeros)
    settings = {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 40}
    last, first = kit.trainer(**settings), kit.trainer(backend_class=FirstStage, **settings)
    wanted, found = last.train(batch_of(rows, steps=2)), first.train(batch_of(rows, steps=2))
    assert (found.metrics_per_step, found.rollout_metrics, found.reports) == ([], {}, False)
    assert found.skipped == wanted.skipped
    assert first.backend.passes == last.backend.passes
    assert first.backend.optimizer_steps == last.backend.optimizer_steps
    assert [b.rows for b in first.backend.micro_batches] == [b.rows for b in last.backend.micro_batches]
