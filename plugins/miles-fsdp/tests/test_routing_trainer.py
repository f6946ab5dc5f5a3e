"""Routing replay through core's trainer: which pass routes how."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from miles_core.config import AlgorithmOptions, ClusterOptions, RolloutOptions, RoutingOptions, TrainingOptions
from miles_core.errors import RunError
from miles_core.options import Config
from miles_core.protocols import AdvantageInputs, AdvantageOutputs, LossInputs, LossOutputs, ModelSpec
from miles_core.testing import random_rows
from miles_core.training.split import split_rows
from miles_core.training.trainer import Trainer
from miles_fsdp.backend import FsdpBackend
from miles_fsdp.options import FsdpOptions
from miles_fsdp.routing import RouterReplay

pytestmark = pytest.mark.usefixtures("one_rank")

LAYERS, EXPERTS, TOP_K = 2, 8, 2


class RatioLoss:
    """A policy gradient on the ratio, with a KL term for the reference."""

    needs = frozenset({"old_log_probs", "ref_log_probs", "advantages"})

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        ratio = torch.where(inputs.mask != 0, inputs.log_probs - inputs.old_log_probs, 0).exp()
        gap = torch.where(inputs.mask != 0, inputs.log_probs - inputs.ref_log_probs, 0)
        return LossOutputs(-ratio * inputs.advantages + 0.01 * gap**2, {"moved": (ratio.detach() - 1).abs()})


class RewardAdvantage:
    """The reward at every token."""

    needs: frozenset[str] = frozenset()

    def shape_rewards(self, rewards, groups):
        return list(rewards)

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        values = inputs.rewards.repeat_interleave(torch.tensor(inputs.lengths))
        return AdvantageOutputs(values, values)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A checkpoint."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "moe_intermediate_size": 16, "intermediate_size": 48}
    path = tmp_path_factory.mktemp("mixture")
    Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=32, initializer_range=0.3, **sizes, **experts)).save_pretrained(path)
    return path


def make_trainer(mixture, *, routing, algorithm=None, recompute=False, copies=("ref",), **training):
    options = FsdpOptions(optimizer="sgd", attn_implementation="sdpa", gradient_checkpointing=recompute)
    config = Config.of(
        TrainingOptions(**{"lr": 0.5, "clip_grad": 0.0, "micro_batch_size": 3, **training}),
        algorithm or AlgorithmOptions(),
        RolloutOptions(logprob_diff_limit=100.0, logprob_diff_warn=100.0),
        routing,
        options,
        ClusterOptions(device="cpu"),
    )
    backend = FsdpBackend(config)
    backend.setup(ModelSpec(checkpoint=mixture, train_steps=10, copies=copies))
    return Trainer(config, backend, RatioLoss(), RewardAdvantage())


def batch_of(rows, steps):
    return split_rows(rows, data_size=1, steps=steps, balance=False, rollout_id=0)[0]


class Watch:
    """What went through :class:`RouterReplay`: for each micro-batch, whether it was recorded and the routes that it had."""

    def __init__(self, monkeypatch):
        self.seen = []
        start = RouterReplay.start

        def watched(replay, batch, *, record=False):
            self.seen.append((record, batch))
            start(replay, batch, record=record)

        monkeypatch.setattr(RouterReplay, "start", watched)

    def by_row(self, rows, found):
        """The routes of each row among micro-batches."""
        routes = {}
        for batch in found:
            for place, row in enumerate(batch.rows):
                first = int(batch.cu_seqlens[place])
                if row >= 0:
                    routes[row] = batch.routes[first : first + len(rows[row].tokens)].numpy()
        return routes


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("engine_log_probs", [False, True])
def test_r2_records_once_and_every_step_replays(mixture, monkeypatch, steps, engine_log_probs):
    rows = random_rows(12)
    watch = Watch(monkeypatch)
    training = {"use_dynamic_batch_size": True, "max_tokens_per_gpu": 40, "log_probs_max_tokens_per_gpu": 100}
    algorithm = AlgorithmOptions(use_rollout_logprobs=engine_log_probs)
    trainer = make_trainer(mixture, routing=RoutingOptions(use_routing_replay=True), algorithm=algorithm, **training)
    report = trainer.train(batch_of(rows, steps))
    assert len(report.metrics_per_step) == steps
    scored = [batch for record, batch in watch.seen if record]
    trained = [batch for record, batch in watch.seen if not record]
    assert {row for batch in scored for row in batch.rows} - {-1} == set(range(12))
    assert all(batch.routes is None for batch in scored)
    assert len(trained) > len(scored), "the divisions differ"
    replayed = watch.by_row(rows, trained)
    assert all((routes >= 0).all() for routes in replayed.values())
    assert len(replayed) == sum(bool(row.mask.any()) for row in rows)
    fresh = make_trainer(mixture, routing=RoutingOptions(use_routing_replay=True)).backend
    (outputs,) = fresh.forward([dataclasses.replace(scored[0], routes=None)], dataclasses.replace(trainer._scoring, routes=True))
    own = watch.by_row(rows, [dataclasses.replace(scored[0], routes=outputs.routes)])
    assert all(np.array_equal(own[row], replayed[row]) for row in own.keys() & replayed.keys())


def test_with_one_step_replay_is_the_free_step(mixture):
    """The first step after the pass that recorded has the same weights, and so the same routes by itself."""
    rows = random_rows(12)
    weights = []
    for routing in (RoutingOptions(), RoutingOptions(use_routing_replay=True)):
        trainer = make_trainer(mixture, routing=routing)
        report = trainer.train(batch_of(rows, 1))
        assert report.metrics_per_step[0]["train/moved"] < 1e-5
        weights.append({name: tensor.clone() for name, tensor in trainer.backend.export_weights()})
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5), name


@pytest.mark.parametrize("recompute", [False, True])
def test_later_steps_keep_the_experts_that_they_were_sampled_with(mixture, recompute):
    """Steps that move the routers: replayed steps of every division agree, and are not those of free routers."""
    rows = random_rows(16)
    found = []
    for routing, division in (
        (RoutingOptions(), {}),
        (RoutingOptions(use_routing_replay=True), {}),
        (RoutingOptions(use_routing_replay=True), {"micro_batch_size": 1}),
        (RoutingOptions(use_routing_replay=True), {"qkv_format": "bshd", "micro_batch_size": 8}),
    ):
        trainer = make_trainer(mixture, routing=routing, recompute=recompute, **division)
        trainer.train(batch_of(rows, 4))
        found.append(torch.cat([tensor.flatten().clone() for _, tensor in trainer.backend.export_weights()]))
    free, *replayed = found
    assert not torch.allclose(free, replayed[0], atol=1e-3), "no route changed in four steps"
    for other in replayed[1:]:
        assert torch.allclose(other, replayed[0], atol=1e-3)


def test_the_kept_old_actor_chooses(mixture, monkeypatch):
    """With ``--keep-old-actor`` the pass that records is that of the copy, which needs the same routers in front of it."""
    watch = Watch(monkeypatch)
    routing, algorithm = RoutingOptions(use_routing_replay=True), AlgorithmOptions(keep_old_actor=True)
    trainer = make_trainer(mixture, routing=routing, algorithm=algorithm, copies=("ref", "old_actor"))
    rows = random_rows(8)
    trainer.train(batch_of(rows, 2))
    first = watch.by_row(rows, [batch for record, batch in watch.seen if not record])
    watch.seen.clear()
    trainer.train(batch_of(rows, 2))
    again = watch.by_row(rows, [batch for record, batch in watch.seen if not record])
    assert all(np.array_equal(first[row], again[row]) for row in first), "the copy did not move, and neither did its choice"


def test_r3_replays_the_rows_routes_in_old_pass_and_steps(mixture, monkeypatch):
    rng = np.random.default_rng(1)
    rows = [
        dataclasses.replace(row, routes=rng.random((len(row.tokens), LAYERS, EXPERTS)).argsort(-1)[..., :TOP_K].astype(np.int16))
        for row in random_rows(8)
    ]
    watch = Watch(monkeypatch)
    trainer = make_trainer(mixture, routing=RoutingOptions(use_rollout_routing_replay=True))
    passes = []
    forward = trainer.backend.forward

    def counted(batches, request, *, weights="actor"):
        passes.append((weights, [batch.routes is not None for batch in batches]))
        return forward(batches, request, weights=weights)

    trainer.backend.forward = counted
    report = trainer.train(batch_of(rows, 2))
    assert [name for name, _ in passes] == ["ref", "actor"]
    assert not any(passes[0][1]), "the reference routes by itself"
    assert all(passes[1][1])
    assert not any(record for record, _ in watch.seen)
    for row, routes in watch.by_row(rows, [batch for _, batch in watch.seen]).items():
        assert np.array_equal(routes, rows[row].routes)
    assert report.metrics_per_step[0]["train/moved"] < 1e-5
    incomplete = [*rows[:3], dataclasses.replace(rows[3], routes=None), *rows[4:]]
    with pytest.raises(RunError, match=r"M433.*sample 3 "):
        trainer.train(batch_of(incomplete, 2))
