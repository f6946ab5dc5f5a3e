"""Two processes that load HF directories and export them again, for every architecture and way to share the work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow
BOUND = 1e-4
WORLD = 2
SECONDS = 240


def write_models(root: Path, vocabulary: int) -> None:
    """``biased`` (Qwen2 with biases other than 0), ``llama3`` and ``linear`` (Llama with scaled rotary angles)."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(2)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    biased = Qwen2ForCausalLM(Qwen2Config(**sizes))
    with torch.no_grad():
        for name, param in biased.named_parameters():
            if name.endswith("bias"):
                param.normal_()
    biased.save_pretrained(root / "biased")
    fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scalings = {
        "llama3": {"rope_type": "llama3", "factor": 4.0, "rope_theta": 500.0, **fixed},
        "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    }
    for name, scaling in scalings.items():
        LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=scaling)).save_pretrained(root / name)


def write_broken(root: Path) -> None:
    """``qwen3`` without a tensor, with one too many, and with one of another shape."""
    tensors = load_file(root / "qwen3" / "model.safetensors")
    norm = tensors["model.norm.weight"]
    broken = {
        "missing": {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"},
        "extra": {**tensors, "model.odd.weight": norm.clone()},
        "narrow": {**tensors, "model.norm.weight": norm[:-1].clone()},
    }
    for name, changed in broken.items():
        shutil.copytree(root / "qwen3", root / name)
        save_file(changed, root / name / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def found(root, tiny):
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    write_models(root, tiny.VOCABULARY)
    write_broken(root)
    script = Path(__file__).with_name("mapping_ranks.py")
    logs = [root / f"mapping-{rank}.log" for rank in range(WORLD)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            command = [sys.executable, str(script), str(rank), str(WORLD), str(root)]
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * WORLD, "\n".join(log.read_text()[-3000:] for log in logs)
    return [torch.load(root / f"mapping-{rank}.pt", weights_only=False) for rank in range(WORLD)]


def test_what_is_exported_is_what_was_loaded_bit_for_bit(found):
    for rank in found:
        assert len(rank["round_trips"]) >= 15
        for name, each in rank["round_trips"].items():
            assert each["weights"], name
            assert each["folder"], name
            assert each["once"], name
            assert each["buckets"] > 1, name


def test_biases_and_scaled_angles_are_those_of_transformers(found, root, tiny):
    rows = tiny.samples(4)
    wanted = {model: tiny.reference(root / model, rows)[1].detach() for model in ("biased", "llama3", "linear")}
    seen = 0
    for rank in found:
        for name, (model, mine) in rank["log_probs"].items():
            if mine is not None:
                assert torch.allclose(mine, wanted[model], atol=BOUND), name
                seen += 1
    assert seen == 7


def test_tensors_that_are_not_the_models_are_one_line_each(found):
    said = {"missing": "M342", "extra": "M342", "narrow": "M343"}
    names = {"missing": "model.norm.weight", "extra": "model.odd.weight", "narrow": "model.norm.weight"}
    for rank in found:
        assert {name: code for name, (code, _) in rank["refusals"].items()} == said
        for name, (_, text) in rank["refusals"].items():
            assert names[name] in text
            assert "\n" not in text


def test_the_models_written_here_are_what_they_should_be(root, found):
    del found
    assert json.loads((root / "biased" / "config.json").read_text())["model_type"] == "qwen2"
    assert "model.layers.0.self_attn.q_proj.bias" in load_file(root / "biased" / "model.safetensors")
