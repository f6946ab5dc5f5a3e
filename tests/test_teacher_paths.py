"""The same teacher, scored in the trainer and on a real engine's server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from miles_core.config import ClusterOptions, RolloutOptions, TeacherOptions, TrainingOptions
from miles_core.options import Config
from miles_core.protocols import AdvantageInputs, AdvantageOutputs, EngineLaunch, LossInputs, LossOutputs, ModelSpec
from miles_core.rollout.conversion import to_rows
from miles_core.rollout.teacher import TeacherClient
from miles_core.samples import Sample
from miles_core.training.rows import TrainRow
from miles_core.training.split import split_rows
from miles_core.training.trainer import Trainer
from miles_fsdp.backend import FsdpBackend
from miles_fsdp.options import FsdpOptions
from miles_transformers.engine import TransformersEngine
from miles_transformers.options import TransformersOptions

TEMPERATURE = 0.8


class Distillation:
    """The log-ratio of teacher and policy; keeps what it was given."""

    needs = frozenset({"old_log_probs", "teacher_log_probs"})
    seen: AdvantageInputs

    def shape_rewards(self, rewards: Sequence[float], groups: Sequence[int]) -> list[float]:
        return list(rewards)

    def __call__(self, inputs: AdvantageInputs) -> AdvantageOutputs:
        self.seen = inputs
        values = inputs.teacher_log_probs - inputs.old_log_probs
        return AdvantageOutputs(values, values)


class Gradient:
    """A plain policy gradient."""

    needs = frozenset({"advantages", "old_log_probs"})

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        return LossOutputs(-(inputs.log_probs - inputs.old_log_probs).exp() * inputs.advantages)


@pytest.fixture(scope="module")
def teacher(task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama, larger than the policy, with the policy's tokenizer and a head of more rows."""
    torch.manual_seed(3)
    vocabulary = AutoConfig.from_pretrained(task.model).vocab_size + 5
    sizes = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    }
    config = LlamaConfig(vocab_size=vocabulary, **sizes, max_position_embeddings=512, initializer_range=0.1)
    folder = tmp_path_factory.mktemp("teacher")
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(task.model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("group") / "init"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(9):
        prompt, response = (rng.integers(0, 60, int(rng.integers(1, high))).tolist() for high in (20, 12))
        log_probs = [-1.0] * len(response)
        made.append(Sample(index, index // 3, "", prompt, response, rollout_log_probs=log_probs, reward=0.0))
    made[4].loss_mask = [i % 2 for i in range(made[4].response_length)]
    return made


def trained(model: Path, rows: Sequence[TrainRow], teacher: Path | None) -> tuple[torch.Tensor, float]:
    """Teacher log-probs as the estimator gets them, and the gradient's norm."""
    config = Config.of(
        TrainingOptions(lr=1e-3, micro_batch_size=2),
        RolloutOptions(rollout_temperature=TEMPERATURE, logprob_diff_limit=1e9, logprob_diff_warn=1e9),
        TeacherOptions(teacher_load=str(teacher) if teacher else None),
        FsdpOptions(attn_implementation="sdpa"),
        ClusterOptions(device="cpu"),
    )
    backend = FsdpBackend(config)
    backend.setup(ModelSpec(model, 1, models=(("teacher", teacher),) if teacher else ()))
    estimator = Distillation()
    report = Trainer(config, backend, Gradient(), estimator).train(
        split_rows(rows, data_size=1, steps=1, balance=False, rollout_id=0)[0]
    )
    return estimator.seen.teacher_log_probs, report.metrics_per_step[0]["train/grad_norm"]


@pytest.mark.usefixtures("one_rank")
def test_trainer_server_and_transformers_agree(task, teacher: Path) -> None:
    engine = TransformersEngine(Config.of(TransformersOptions(kv_cache_tokens=2048), ClusterOptions(device="cpu")))
    url = engine.start(EngineLaunch(rank=0, model=teacher))
    batch = samples()

    async def score() -> None:
        client = TeacherClient(TeacherOptions(teacher_url=url), TEMPERATURE)
        try:
            await client.check(batch[0].tokens)
            tally = await client.score(batch, 0.0)
        finally:
            await client.close()
        assert (tally.scored, tally.failed, tally.retries) == (len(batch), 0, 0)

    try:
        asyncio.run(score())
    finally:
        engine.stop()

    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, attn_implementation="eager").eval()
    wanted = []
    for sample in batch:
        ids = torch.tensor([sample.tokens])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, -sample.response_length - 1 : -1] / TEMPERATURE
        wanted.append(torch.log_softmax(logits, -1).gather(1, ids[0, -sample.response_length :, None])[:, 0])

    remote, remote_norm = trained(task.model, to_rows(batch, None), None)
    for sample in batch:
        sample.teacher_log_probs = None
    local, local_norm = trained(task.model, to_rows(batch, None), teacher)
    assert (local - torch.cat(wanted)).abs().max() < 1e-5
    assert (remote - local).abs().max() < 1e-5
    assert remote_norm == pytest.approx(local_norm, rel=1e-5)
    assert remote_norm > 0
