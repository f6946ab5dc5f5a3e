"""Teacher log-probs: of a model in the trainer, and brought by the rows."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from miles_core.config import RolloutOptions, TeacherOptions, TrainingOptions
from miles_core.errors import RunError
from miles_core.options import Config
from miles_core.protocols import AdvantageOutputs, ModelSpec
from miles_core.testing import ToyBackend, random_rows, toy_reference, write_toy_checkpoint
from miles_core.testing.toy_model import ToyConfig
from miles_core.training.rows import TrainRow
from miles_core.training.split import split_rows
from miles_core.training.table import RowTable
from miles_core.training.trainer import Trainer

ROWS = random_rows(14)


class Distillation:
    """The log-ratio of teacher and policy at every token."""

    needs = frozenset({"old_log_probs", "teacher_log_probs"})

    def __init__(self) -> None:
        self.seen = []

    def shape_rewards(self, rewards, groups):
        return list(rewards)

    def __call__(self, inputs):
        self.seen.append(inputs)
        values = inputs.teacher_log_probs - inputs.old_log_probs
        return AdvantageOutputs(values, values)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A toy checkpoint of other sizes than the policy, with its vocabulary."""
    return write_toy_checkpoint(tmp_path_factory.mktemp("teacher"), ToyConfig(hidden_size=24, layers=3, heads=3), seed=9)


def trainer_of(kit, teacher=None, temperature=1.0, **training) -> Trainer:
    config = Config.of(
        TrainingOptions(**{"lr": 0.1, "clip_grad": 0.0, **training}),
        RolloutOptions(rollout_temperature=temperature, logprob_diff_limit=100.0, logprob_diff_warn=100.0),
        TeacherOptions(teacher_load=str(teacher) if teacher else None),
    )
    backend = ToyBackend(config)
    backend.setup(ModelSpec(kit.checkpoint, 10, models=(("teacher", teacher),) if teacher else ()))
    return Trainer(config, backend, kit.KeepingLoss(), Distillation())


def batch_of(rows, steps=1):
    return split_rows(rows, data_size=1, steps=steps, balance=False, rollout_id=0)[0]


def scored(checkpoint, rows, temperature=1.0):
    """Log-probs of each row's response by one plain pass over it alone."""
    model = toy_reference(checkpoint)
    found = []
    for row in rows:
        ids = torch.from_numpy(row.tokens.astype(np.int64))
        every = torch.log_softmax(model(ids)[-row.response_length - 1 : -1] / temperature, -1)
        found.append(every.gather(1, ids[-row.response_length :, None])[:, 0].detach().numpy())
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_teacher_of_another_size_is_scored_under_the_same_prompt_and_temperature(kit, teacher, temperature, steps):
    trainer = trainer_of(kit, teacher, temperature, micro_batch_size=4)
    report = trainer.train(batch_of(ROWS, steps))
    wanted, old = scored(teacher, ROWS, temperature), scored(kit.checkpoint, ROWS, temperature)
    (inputs,) = trainer.advantage.seen
    assert np.allclose(inputs.teacher_log_probs.numpy(), np.concatenate(wanted), atol=1e-5)
    assert trainer.backend.passes.count("teacher") == 1
    live = [i for i, row in enumerate(ROWS) if row.mask.any()]
    means = {
        name: np.mean([np.average(values[i], weights=ROWS[i].mask) for i in live])
        for name, values in (("teacher", wanted), ("kl", [o - t for o, t in zip(old, wanted, strict=True)]))
    }
    assert report.rollout_metrics["rollout/teacher_log_probs"] == pytest.approx(means["teacher"], abs=1e-5)
    assert report.rollout_metrics["rollout/opd_reverse_kl"] == pytest.approx(means["kl"], abs=1e-5)


def with_teacher(rows, values) -> list[TrainRow]:
    return [
        row if found is None else dataclasses.replace(row, extras={"teacher_log_probs": np.asarray(found, np.float32)})
        for row, found in zip(rows, values, strict=True)
    ]


def test_rows_that_bring_the_log_probs_give_the_same_step(kit, teacher, furthest):
    here = trainer_of(kit, teacher)
    here.train(batch_of(ROWS))
    values = [found if row.mask.any() else None for found, row in zip(scored(teacher, ROWS), ROWS, strict=True)]
    assert any(found is None for found in values), "a failed row brings none"
    there = trainer_of(kit)
    there.train(pickle.loads(pickle.dumps(batch_of(with_teacher(ROWS, values)))))
    assert furthest(there.backend.gradients, here.backend.gradients) < 1e-4
    assert "teacher" not in there.backend.passes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: None, "has no teacher_log_probs"),
        (lambda v: v[:-1], r"teacher_log_probs have shape"),
        (lambda v: np.full_like(v, np.nan), "teacher_log_probs are not finite"),
        (lambda v: np.full_like(v, -np.inf), "teacher_log_probs are not finite"),
    ],
)
def test_a_row_that_is_trained_on_must_bring_them_whole(kit, teacher, change, message):
    values = scored(teacher, ROWS)
    values[2] = change(values[2])
    with pytest.raises(RunError, match=rf"M417 .*sample 2 .*{message}"):
        trainer_of(kit).train(batch_of(with_teacher(ROWS, values)))


def test_what_the_mask_hides_may_be_anything():
    row = dataclasses.replace(ROWS[1], mask=np.zeros_like(ROWS[1].mask), extras={"teacher_log_probs": ROWS[1].mask * np.nan})
    assert np.array_equal(RowTable([row]).extra("teacher_log_probs"), np.zeros(row.response_length + 1))


def test_extras_travel_with_their_rows():
    rng = np.random.default_rng(0)
    rows = [
        dataclasses.replace(
            row,
            extras={
                name: rng.normal(size=row.response_length).astype(np.float32)
                for name in ("a", "b")
                if (i + len(name)) % 3 or name == "b"
            },
        )
        for i, row in enumerate(ROWS)
    ]
    assert {frozenset(row.extras) for row in rows} == {frozenset("ab"), frozenset("b")}
    for batch in split_rows(rows, data_size=3, steps=2, balance=True, rollout_id=0):
        back = pickle.loads(pickle.dumps(batch))
        for row, copy in zip(batch.rows, back.rows, strict=True):
            assert copy.extras.keys() == row.extras.keys() == rows[row.index].extras.keys()
            assert all(np.array_equal(copy.extras[name], values) for name, values in rows[row.index].extras.items())
            assert all(values.dtype == np.float32 for values in copy.extras.values())
    assert not pickle.loads(pickle.dumps(batch_of([ROWS[0]]))).rows[0].extras


def sampled(model, count, seed) -> list[TrainRow]:
    """Rows that the model itself samples: prompts of 2 tokens, responses of 6."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 32, (count, 2), generator=generator)
    log_probs = []
    with torch.no_grad():
        for _ in range(6):
            positions = torch.arange(ids.shape[1]).expand(count, -1)
            every = torch.log_softmax(model.head(model.hidden(ids, positions, None)[:, -1]), -1)
            drawn = torch.multinomial(every.exp(), 1, generator=generator)
            ids = torch.cat([ids, drawn], 1)
            log_probs.append(every.gather(1, drawn))
    made = torch.cat(log_probs, 1).numpy()
    return [
        TrainRow(i, i, tokens.numpy().astype(np.int32), 6, np.ones(6, np.float32), 0.0, float("nan"), made[i], version=1)
        for i, tokens in enumerate(ids)
    ]


def test_the_policy_comes_nearer_to_its_teacher(kit, teacher):
    """Reverse KL over 20 on-policy steps without any reward; the teacher's own KL would be 0."""
    trainer = trainer_of(kit, teacher, lr=0.02, micro_batch_size=64)
    found = []
    for step in range(20):
        report = trainer.train(batch_of(sampled(trainer.backend._sets["actor"], 256, step)))
        found.append(report.rollout_metrics["rollout/opd_reverse_kl"])
        assert report.metrics_per_step[0]["train/train_rollout_logprob_abs_diff"] < 1e-5
    assert found[0] > 1.0
    assert np.mean(found[-3:]) < 0.6 * found[0]
    assert all(np.mean(found[i : i + 5]) > np.mean(found[i + 5 : i + 10]) for i in (0, 5, 10))
