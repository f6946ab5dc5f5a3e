"""On-policy distillation through ``miles run``: no reward, the teacher scored in the trainer and on a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from miles_core.config import ClusterOptions
from miles_core.options import Config
from miles_core.protocols import EngineLaunch
from miles_transformers.engine import TransformersEngine
from miles_transformers.options import TransformersOptions

pytestmark = pytest.mark.slow


@pytest.fixture
def teacher(task, tmp_path: Path) -> Path:
    """A Llama with the policy's tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 512, "initializer_range": 0.1}
    vocabulary = AutoConfig.from_pretrained(task.model).vocab_size
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, **heads)).save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(task.model).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def served(teacher: Path) -> Iterator[str]:
    """The teacher's address on a server of its own."""
    settings = TransformersOptions(kv_cache_tokens=2048, threads=1)
    engine = TransformersEngine(Config.of(settings, ClusterOptions(device="cpu")))
    yield engine.start(EngineLaunch(rank=0, model=teacher))
    engine.stop()


def test_two_rollouts_in_the_trainer_and_on_a_server(task, teacher, served, cluster, miles, metrics, tmp_path: Path) -> None:
    estimator = {"algo": None, "advantage_estimator": "on_policy_distillation", "loss_type": "policy_loss", "custom_rm_path": None}
    found = {}
    for name, source in (("here", ("--teacher-load", teacher)), ("there", ("--teacher-url", served))):
        arguments = task.arguments(trainers=2 if name == "here" else 1, **estimator)
        done = miles(
            *("run", *arguments, *source, "--num-rollout", 2, "--rollout-temperature", 0.9),
            *("--run-dir", tmp_path / name, "--ray-address", cluster),
            MILES_TEACHER_API_KEY="k3y-of-the-test" if name == "there" else "",
        )
        said = done.stdout + done.stderr
        assert "nobody read" not in said
        kept = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert not any(b"k3y-of-the-test" in path.read_bytes() for path in kept)
        assert "k3y-of-the-test" not in said
        found[name] = metrics(tmp_path / name)
    for values in found.values():
        assert "rollout/raw_reward" not in values
        assert len(values["rollout/opd_reverse_kl"]) == 2
        columns = ("rollout/opd_reverse_kl", "rollout/teacher_log_probs", "rollout/log_probs")
        for (_, kl), (_, teachers), (_, policy) in zip(*(values[column] for column in columns), strict=True):
            assert kl == pytest.approx(policy - teachers, abs=1e-4)
            assert kl > 0.1
        assert all(value > 0 for _, value in values["train/grad_norm"])
        assert all(value < 1e-4 for _, value in values["train/train_rollout_logprob_abs_diff"])
    assert [value for _, value in found["there"]["rollout/teacher_failures"]] == [0.0, 0.0]
    assert "rollout/teacher_failures" not in found["here"]
    # Both runs sample the same first rollout.
    for column in ("rollout/teacher_log_probs", "rollout/opd_reverse_kl", "train/grad_norm"):
        assert found["there"][column][0][1] == pytest.approx(found["here"][column][0][1], rel=1e-4)
