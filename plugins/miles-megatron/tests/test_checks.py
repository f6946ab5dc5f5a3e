from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from miles_megatron.options import MegatronOptions
from miles_megatron.plugin import miles_backend, miles_configure

from miles_core.config import ClusterOptions, CriticOptions, PluginOptions, RolloutOptions, TrainingOptions
from miles_core.options import Config
from miles_core.plugins.events import Configure

DENSE = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "vocab_size": 100,
}
EXPERTS = {**DENSE, "model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8}

AHEAD = {**DENSE, "model_type": "mimo", "num_nextn_predict_layers": 2}


@pytest.fixture
def found(tmp_path: Path):
    """The errors of these options, for a model and a number of ranks."""

    def check(model=DENSE, ranks=8, layout="thd", critics=None, estimator="grpo", **options) -> list[str]:
        (tmp_path / "config.json").write_text(json.dumps(model), encoding="utf-8")
        errors = []
        parts = (
            MegatronOptions(**options),
            RolloutOptions(hf_checkpoint=str(tmp_path)),
            ClusterOptions(actor_num_gpus_per_node=ranks),
            PluginOptions(advantage_estimator=estimator),
            CriticOptions(critic_num_gpus_per_node=critics),
            TrainingOptions(qkv_format=layout),
        )
        miles_configure(Configure(Config.of(*parts), errors.append))
        return [str(error) for error in errors]

    return check


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tensor_model_parallel_size": 2, "sequence_parallel": True, "pipeline_model_parallel_size": 2, "context_parallel_size": 2},
        {"pipeline_model_parallel_size": 2, "virtual_stages": 3, "overlap_grad_reduce": True, "overlap_param_gather": True},
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2},
        {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    ],
)
def test_what_fits_passes(found, options):
    assert found(**options) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_model_parallel_size": 8}, "does not divide the model's 4 key-value heads. Do: take 1 or 2 or 4"),
        ({"tensor_model_parallel_size": 0}, "--tensor-model-parallel-size is 0"),
        ({"pipeline_model_parallel_size": 4}, "does not divide the model's 6 layers. Do: take 1 or 2 or 3 or 6"),
        ({"context_parallel_size": 8, "tensor_model_parallel_size": 2}, "8 ranks of the actor do not divide into parts of 16"),
        ({"context_parallel_size": 4, "tensor_model_parallel_size": 4, "ranks": 16}, "does not divide the 2 attention heads"),
        ({"expert_model_parallel_size": 2}, "the model has no experts"),
        ({"expert_model_parallel_size": 4, "model": EXPERTS}, "does not divide the model's 6 experts"),
        ({"expert_model_parallel_size": 3, "model": EXPERTS}, "8 ranks of a pipeline stage do not divide into parts of 3"),
        ({"tensor_model_parallel_size": 2, "critics": 3}, "3 ranks of the critic do not divide into parts of 2"),
    ],
)
def test_sizes_that_fit_neither_run_nor_model(found, options, said):
    errors = found(**options)
    assert any(said in error for error in errors), errors
    assert all(error.startswith("M550 miles-megatron: ") for error in errors)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"context_parallel_size": 2, "layout": "bshd"}, "--context-parallel-size 2 contradicts --qkv-format bshd"),
        ({"sequence_parallel": True}, "--sequence-parallel has no effect"),
        ({"virtual_stages": 2}, "--num-virtual-stages-per-pipeline-rank 2 has no effect"),
        ({"virtual_stages": 3, "pipeline_model_parallel_size": 2, "layout": "bshd"}, "contradicts --qkv-format bshd"),
        ({"overlap_param_gather": True}, "--overlap-param-gather lacks what it builds on"),
        (
            {"overlap_param_gather": True, "overlap_grad_reduce": True, "use_distributed_optimizer": False},
            "lacks what it builds on",
        ),
        ({"recompute_method": "block"}, "--recompute-method has no effect"),
        ({"recompute_num_layers": 2}, "--recompute-num-layers has no effect"),
        ({"recompute_granularity": "full", "recompute_num_layers": 0}, "--recompute-num-layers is 0"),
        ({"recompute_modules": ["mlp"]}, "--recompute-modules has no effect"),
        ({"train_memory_margin_bytes": -1}, "--train-memory-margin-bytes is -1"),
        ({"mtp_num_layers": 1}, "--mtp-num-layers has no effect"),
        ({"mtp_loss_scaling_factor": 0.5}, "--mtp-loss-scaling-factor has no effect"),
        ({"tensor_model_parallel_size": 2, "model": EXPERTS}, "set --sequence-parallel"),
    ],
)
def test_options_that_contradict_each_other(found, options, said):
    (error,) = found(**options)
    assert error.startswith("M551 miles-megatron: ")
    assert said in error


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"model": DENSE}, "M570", "has no layers of multi-token prediction"),
        ({"model": {**AHEAD, "num_nextn_predict_layers": 0}}, "M570", "has no layers of multi-token prediction"),
        (
            {"mtp_num_layers": 3},
            "M571",
            "has 2 of these layers, of which the first so many are trained. Do: leave it out, or give 1 to 2",
        ),
        ({"mtp_num_layers": 0}, "M571", "--mtp-num-layers is 0"),
        ({"mtp_loss_scaling_factor": 0.0}, "M571", "--mtp-loss-scaling-factor is 0: it is the weight of a loss"),
        ({"mtp_loss_scaling_factor": float("nan")}, "M571", "--mtp-loss-scaling-factor is nan"),
        ({"model": {**AHEAD, "model_type": "qwen2"}}, "M345", "it has multi-token-prediction layers, which are not built"),
    ],
)
def test_multi_token_prediction_that_cannot_be_trained(found, options, code, said):
    (error,) = found(enable_mtp_training=True, **{"model": AHEAD, **options})
    assert error.startswith(f"{code} miles-megatron: ")
    assert said in error


def test_multi_token_prediction_that_can(found):
    assert found(model=AHEAD) == []
    for options in ({}, {"mtp_num_layers": 1}, {"mtp_num_layers": 2, "mtp_loss_scaling_factor": 1.5}):
        assert found(model=AHEAD, enable_mtp_training=True, **options) == []


def _installed(folder, monkeypatch, *packages):
    """A folder in which alone Python finds packages of megatron, namely these."""
    for package in packages:
        (folder / "packages" / "megatron" / package).mkdir(parents=True)
        (folder / "packages" / "megatron" / package / "__init__.py").write_text("raise ImportError('something else is missing')")
    monkeypatch.setattr(sys, "path", [str(folder / "packages")])
    monkeypatch.delitem(sys.modules, "megatron", raising=False)
    importlib.invalidate_caches()


@pytest.mark.parametrize("packages", [(), ("core",)])
def test_megatron_bridge_that_is_not_installed(found, tmp_path, monkeypatch, packages):
    _installed(tmp_path, monkeypatch, *packages)
    (error,) = found(megatron_to_hf_mode="bridge")
    assert error.startswith("M577 miles-megatron: --megatron-to-hf-mode bridge needs megatron-bridge: it is not installed. Do: pip")
    assert found(megatron_to_hf_mode="raw") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"estimator": "ppo"}, "does not go with a critic"),
        ({"model_name": "qwen2"}, "does not go with --model-name qwen2"),
        ({"model": AHEAD}, "does not go with layers of multi-token prediction"),
    ],
)
def test_what_megatron_bridge_does_not_convert(found, tmp_path, monkeypatch, options, said):
    _installed(tmp_path, monkeypatch, "core", "bridge")
    assert found(megatron_to_hf_mode="bridge") == []
    (error,) = found(megatron_to_hf_mode="bridge", **options)
    assert error.startswith("M578 miles-megatron: --megatron-to-hf-mode bridge ")
    assert said in error


def test_models_that_are_not_built(found):
    (error,) = found(model={**DENSE, "model_type": "gemma2"})
    assert error.startswith("M345 miles-megatron")
    assert found(model={**DENSE, "model_type": "gemma2"}, custom_model_provider_path="my.provider") == []
    assert found(model={**DENSE, "model_type": "mine"}, model_name="qwen3") == []


def test_an_unreadable_config_is_left_to_others(found, tmp_path):
    assert found(model="no object") == []


def test_the_record_imports_nothing_heavy():
    (record,) = miles_backend()
    assert record.name == "megatron"
    code = "import miles_megatron.plugin, sys; sys.exit(any(name in sys.modules for name in ('torch', 'megatron', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
