"""Which runs may have ``--context-parallel-size``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miles_core.config import CriticOptions, RolloutOptions, RoutingOptions, TeacherOptions, TrainingOptions
from miles_core.options import Config
from miles_core.plugins.events import Configure
from miles_fsdp import plugin
from miles_fsdp.checks import attention_heads
from miles_fsdp.options import FsdpOptions


def lines(config: Config) -> list[str]:
    found = []
    plugin.miles_configure(Configure(config, found.append))
    return [error.line() for error in found]


@pytest.fixture
def model(tmp_path: Path):
    """Writes a config with so many heads, and gives its folder."""

    def write(heads: int, name: str = "model") -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"num_attention_heads": heads}))
        return str(folder)

    return write


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_divisors_of_the_heads_are_fine(model, size: int):
    assert lines(Config.of(FsdpOptions(context_parallel_size=size), RolloutOptions(hf_checkpoint=model(6)))) == []


def test_heads_of_every_model_count(model):
    models = RolloutOptions(hf_checkpoint=model(6)), TeacherOptions(teacher_load=model(4, "teacher"))
    (line,) = lines(Config.of(FsdpOptions(context_parallel_size=3), *models))
    assert line.startswith("M338 miles-fsdp")
    assert "--teacher-load" in line
    assert "4 attention heads" in line
    assert "take 1 or 2 or 4" in line
    assert (
        len(lines(Config.of(FsdpOptions(context_parallel_size=4), *models, CriticOptions(critic_load=models[0].hf_checkpoint))))
        == 2
    )


@pytest.mark.parametrize(
    ("group", "part"),
    [
        (TrainingOptions(true_on_policy_mode=True), "--true-on-policy-mode"),
        (RoutingOptions(use_routing_replay=True), "--use-routing-replay"),
        (RoutingOptions(use_routing_replay=True, use_rollout_routing_replay=True), "--use-rollout-routing-replay"),
    ],
)
def test_what_it_does_not_go_with(group: object, part: str):
    (line,) = lines(Config.of(FsdpOptions(context_parallel_size=2), group))
    assert line.startswith("M338")
    assert f"contradicts {part}:" in line
    assert lines(Config.of(FsdpOptions(), group)) == []


@pytest.mark.parametrize(("kernels", "count"), [("eager", 1), ("sdpa", 0)])
def test_attention_runs_on_kernels_of_pytorch(kernels: str, count: int):
    config = Config.of(FsdpOptions(context_parallel_size=2)).replaced(FsdpOptions, attn_implementation=kernels)
    assert sum("--attn-implementation eager" in line for line in lines(config)) == count


def test_a_size_is_a_number_of_ranks():
    (line,) = lines(Config.of(FsdpOptions(context_parallel_size=0)))
    assert "--context-parallel-size is 0" in line


@pytest.mark.parametrize(
    ("text", "heads"),
    [('{"n_head": 4}', 4), ('{"text_config": {"num_attention_heads": 8}}', 8), ("{}", None), ("[]", None), ("{", None)],
)
def test_heads_by_the_config(tmp_path: Path, text: str, heads: int | None):
    (tmp_path / "config.json").write_text(text)
    assert attention_heads(tmp_path) == heads
    assert attention_heads(tmp_path / "absent") is None
