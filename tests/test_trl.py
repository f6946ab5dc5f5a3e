"""Loss and gradient against TRL's GRPOTrainer, fed the same samples.

TRL generates with transformers, grades, and computes loss and gradient of weights that have moved since. The same tokens, rewards,
old log-probs and weights go through miles's trainer and its fsdp backend, whose gradient is read off one step of plain SGD.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from miles_core.options.resolve import resolve
from miles_core.plugins import create
from miles_core.protocols import ModelSpec
from miles_core.training.rows import RankBatch, TrainRow
from miles_core.training.split import split_rows
from miles_core.training.trainer import Trainer

pytest.importorskip("trl", reason="TRL is not installed")
pytestmark = pytest.mark.slow

GROUPS, SAMPLES, LONGEST = 4, 8, 12
RATE = 1e4
"""A rate so large that the change of the weights is the gradient in full precision."""


class Peer:
    """TRL's trainer, one batch of samples that it made, and the weights before and after a disturbance."""

    def __init__(self, model: Path, folder: Path) -> None:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        self.start, self.moved = model, folder / "moved"
        tokenizer = AutoTokenizer.from_pretrained(model)
        self.rewards: list[float] = []
        questions = ["31524", "97310", "44208", "61903"]
        rows = [{"prompt": [{"role": "user", "content": f"sort {q}"}], "answer": "".join(sorted(q))} for q in questions]

        def graded(completion_ids: list[list[int]], **_: object) -> list[float]:
            # Something that a random model's samples differ in.
            self.rewards = [float(len(set(ids))) + sum(ids) % 3 for ids in completion_ids]
            return self.rewards

        args = GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=GROUPS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=LONGEST,
            num_iterations=2,
            beta=0.04,
            temperature=1.0,
            report_to=[],
            seed=7,
        )
        torch.manual_seed(7)
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        # A random model hardly ever ends: with many tokens that end a response, responses are of all lengths.
        policy.generation_config.eos_token_id = list(range(0, policy.config.vocab_size, 6))
        self.trainer = GRPOTrainer(
            model=policy, reward_funcs=graded, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        self.model = self.trainer.model
        self.model.train()
        self.trainer.current_gradient_accumulation_steps = 1
        self.batch = self.trainer._generate_and_score_completions([row for row in rows for _ in range(SAMPLES)])
        assert len({len(row.tokens) for row in self.train_rows("raw")}) > 5
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter += 0.3 * parameter.abs().mean() * torch.randn(parameter.shape)
        self.model.save_pretrained(self.moved)
        tokenizer.save_pretrained(self.moved)

    def loss_and_gradient(self, **settings: object) -> tuple[float, dict[str, torch.Tensor]]:
        """Of the moved weights, with attributes of the trainer, or of its arguments, changed."""
        names = {"loss_type": "grpo", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "importance_sampling_level": "token"}
        names["off_policy_mask_threshold"] = None
        for name, value in {**names, "args.delta": None, "args.use_bias_correction_kl": False, **settings}.items():
            owner = self.trainer.args if name.startswith("args.") else self.trainer
            setattr(owner, name.removeprefix("args."), value)
        self.model.zero_grad()
        loss = self.trainer._compute_loss(self.model, self.batch)
        loss.backward()
        return float(loss.detach()), {name: p.grad.clone() for name, p in self.model.named_parameters()}

    def train_rows(self, reward: str) -> list[TrainRow]:
        """The samples, with TRL's log-probs of the weights that made them as the engine's."""
        batch, rows = self.batch, []
        for i in range(GROUPS * SAMPLES):
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
            kept = batch["completion_mask"][i].bool()
            response = batch["completion_ids"][i][kept].tolist()
            rows.append(
                TrainRow(
                    index=i,
                    group=i // SAMPLES,
                    tokens=np.array(prompt + response, np.int32),
                    response_length=len(response),
                    mask=np.ones(len(response), np.float32),
                    reward=float(batch["advantages"][i]) if reward == "advantages" else self.rewards[i],
                    raw_reward=self.rewards[i],
                    rollout_log_probs=batch["old_per_token_logps"][i][kept].detach().float().numpy(),
                )
            )
        return rows


@pytest.fixture(scope="module")
def peer(task, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    torch.set_num_threads(1)
    return Peer(task.folder / "model", tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('meet') / 'file'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def ours(peer: Peer, *flags: str, weights: Path | None = None) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """miles's trainer on the moved weights, and the weights."""
    words = ["--backend", "fsdp", "--device", "cpu", "--attn-implementation", "sdpa", "--optimizer", "sgd", "--clip-grad", "0"]
    words += ["--lr", str(RATE), "--micro-batch-size", "5", "--use-rollout-logprobs", "--logprob-diff-limit", "100"]
    words += ["--logprob-diff-warn", "100", *flags]
    resolved = resolve(words, environment={})
    assert not resolved.errors, [error.line() for error in resolved.errors]
    config, chosen = resolved.config, resolved.selection
    loss, advantage = create(chosen.loss, config), create(chosen.advantage, config)
    backend = create(chosen.backend, config)
    copies = ("ref",) if "ref_log_probs" in loss.needs else ()
    spec = ModelSpec(weights or peer.moved, train_steps=10, copies=copies, copy_sources=(("ref", peer.start),))
    backend.setup(spec)
    return Trainer(config, backend, loss, advantage), {name: t.clone() for name, t in backend.export_weights()}


CASES = {
    "grpo": ({}, []),
    "grpo with clip-higher": ({"epsilon_low": 0.01, "epsilon_high": 0.02}, ["--eps-clip", "0.01", "--eps-clip-high", "0.02"]),
    "ppo-clip with kl": ({"beta": 0.3}, ["--use-kl-loss", "--kl-loss-coef", "0.3", "--kl-loss-type", "k3"]),
    "ppo-clip with unbiased kl": (
        {"beta": 0.3, "args.use_bias_correction_kl": True},
        ["--use-kl-loss", "--kl-loss-coef", "0.3", "--kl-loss-type", "k3", "--use-unbiased-kl"],
    ),
    "dual clip": ({"args.delta": 1.21, "epsilon_high": 0.2}, ["--eps-clip-c", "1.21"]),
    "dr. grpo": ({"loss_type": "dr_grpo"}, ["--loss-length-divisor", str(LONGEST)]),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, ["--calculate-per-token-loss", "--eps-clip-high", "0.28"]),
    "dapo with kl": (
        {"loss_type": "dapo", "beta": 0.1},
        ["--calculate-per-token-loss", "--use-kl-loss", "--kl-loss-coef", "0.1", "--kl-loss-type", "k3"],
    ),
    "gspo": (
        {"importance_sampling_level": "sequence", "epsilon_low": 0.01, "epsilon_high": 0.02},
        ["--loss-type", "gspo_loss", "--eps-clip", "0.01", "--eps-clip-high", "0.02"],
    ),
    # TRL bounds the weight itself, miles says how far above 1.
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.1},
        ["--loss-type", "cispo", "--eps-clip", "1", "--eps-clip-high", "0.1", "--calculate-per-token-loss"],
    ),
    "sapo": ({"loss_type": "sapo"}, ["--loss-type", "sapo"]),
    "opsm": (
        {"off_policy_mask_threshold": 0.001},
        ["--use-opsm", "--opsm-delta", "0.001"],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", ["thd", "bshd"])
def test_loss_and_gradient_are_those_of_trl(peer: Peer, name: str, layout: str) -> None:
    settings, flags = CASES[name]
    loss, gradient = peer.loss_and_gradient(**settings)
    trainer, before = ours(peer, *flags, "--qkv-format", layout)
    batch = split(peer.train_rows("advantages"))
    report = trainer.train(batch)
    after = dict(trainer.backend.export_weights())
    assert report.metrics_per_step[0]["train/loss"] == pytest.approx(loss, abs=2e-6, rel=1e-5)
    largest = max(float(g.abs().max()) for g in gradient.values())
    assert largest > 1e-3, "there is something to compare"
    for key, wanted in gradient.items():
        found = (before[key] - after[key]) / RATE
        assert torch.allclose(found, wanted, atol=1e-5 * largest, rtol=1e-4), (key, float((found - wanted).abs().max()), largest)


def test_clipping_took_part(peer: Peer) -> None:
    trainer, _ = ours(peer, "--eps-clip-c", "1.21")
    rows = peer.train_rows("advantages")
    assert 0.02 < trainer.train(split(rows)).metrics_per_step[0]["train/pg_clipfrac"] < 0.98
    moved = ours(peer, "--use-rollout-entropy")[0].begin(split(rows)).fields["log_probs"][:-1]
    ratio = np.exp(moved - np.concatenate([row.rollout_log_probs for row in rows]))
    negative = np.concatenate([np.full(row.response_length, row.reward < 0) for row in rows])
    assert (ratio[negative] > 1.21).sum() > 5, "the dual clip too"


def split(rows: list[TrainRow]) -> RankBatch:
    return split_rows(rows, data_size=1, steps=1, balance=False, rollout_id=0)[0]


def test_log_probs_are_those_of_trl(peer: Peer) -> None:
    trainer, _ = ours(peer, "--use-rollout-entropy", weights=peer.start)
    rows = peer.train_rows("advantages")
    found = trainer.begin(split(rows)).fields["log_probs"][:-1]
    assert np.allclose(found, np.concatenate([row.rollout_log_probs for row in rows]), atol=1e-5)


@pytest.mark.parametrize("scaled", [True, False])
def test_advantages_are_those_of_trl(peer: Peer, scaled: bool) -> None:
    """TRL divides by std + 1e-4, miles by std + 1e-6; besides that they are equal."""
    flags = [] if scaled else ["--disable-grpo-std-normalization"]
    trainer, _ = ours(peer, *flags)
    groups = [i // SAMPLES for i in range(GROUPS * SAMPLES)]
    found = torch.tensor(trainer.advantage.shape_rewards(peer.rewards, groups)).view(GROUPS, SAMPLES)
    std = torch.tensor(peer.rewards).view(GROUPS, SAMPLES).std(1, keepdim=True)
    wanted = peer.batch["advantages"].view(GROUPS, SAMPLES) * (std + 1e-4)
    assert torch.allclose(found * (std + 1e-6 if scaled else 1), wanted, atol=1e-5)
