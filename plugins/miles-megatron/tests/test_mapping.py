"""Two processes that load HF directories and export them again, for every architecture and way to share the work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from miles_megatron.architecture import architecture
from miles_megatron.tensors import problems, stored_shapes
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow
BOUND = 1e-4
WORLD = 2
SECONDS = 240
OWN = ("biased", "llama3", "linear", "mixed")
"""The models that only these tests have."""
BROKEN = {
    "missing": ("M342", "1 are missing (model.norm.weight)"),
    "extra": ("M342", "1 are of no parameter (model.odd.weight)"),
    "narrow": ("M343", "model.norm.weight of {folder} has shape [31], the model needs [32]"),
    "low": ("M343", "model.embed_tokens.weight of {folder} has shape [130, 32], the model needs [131, 32]"),
    "tall": ("M343", "model.layers.1.mlp.gate_proj.weight of {folder} has shape [49, 32], the model needs [48, 32]"),
    "wide": ("M343", "model.layers.0.self_attn.q_proj.weight of {folder} has shape [32, 33], the model needs [32, 32]"),
    "expert": ("M342", "1 are missing (model.layers.1.mlp.experts.3.up_proj.weight)"),
    "router": ("M343", "model.layers.0.mlp.gate.weight of {folder} has shape [3, 32], the model needs [4, 32]"),
}
"""What is said of folders whose tensors are not the model's; some fit a rank's part by chance, some are of another rank."""
CUT = {"cut": ("M340", "cannot read {folder}/model.safetensors"), "lost": ("M340", "cannot read {folder}/model-00002-of-")}
"""What is said of folders whose files are not whole."""


def write_models(root: Path, vocabulary: int) -> None:
    """Models of what those of the other tests do not have.

    ``biased``: Qwen2 with biases other than 0. ``llama3`` and ``linear``: Llama with scaled rotary angles, untied with a config as
    it was written before transformers 5, and tied. ``mixed``: a layer without and one with experts,
    their weights adding up to 1, tied.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

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
    scalings = {
        "llama3": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "linear": {"rope_type": "linear", "factor": 2.0},
    }
    for name, scaling in scalings.items():
        scaling["rope_theta"] = 500_000.0
        config = LlamaConfig(**sizes, tie_word_embeddings=name == "linear", rope_parameters=scaling)
        LlamaForCausalLM(config).save_pretrained(root / name)
    before = json.loads((root / "llama3" / "config.json").read_text())
    scaling = before.pop("rope_parameters")
    before |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (root / "llama3" / "config.json").write_text(json.dumps(before))
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
    mixed = Qwen3MoeConfig(**sizes, **experts, head_dim=8, mlp_only_layers=[0], tie_word_embeddings=True)
    Qwen3MoeForCausalLM(mixed).save_pretrained(root / "mixed")


def write_broken(root: Path) -> None:
    """Folders that are like ``qwen3``, ``moe`` and ``llama``, but for what :data:`BROKEN` and :data:`CUT` say."""
    changes = {
        "missing": ("qwen3", "model.norm.weight", lambda tensor: None),
        "extra": ("qwen3", "model.odd.weight", lambda tensor: torch.ones(2)),
        "narrow": ("qwen3", "model.norm.weight", lambda tensor: tensor[:-1]),
        "low": ("qwen3", "model.embed_tokens.weight", lambda tensor: tensor[:-1]),
        "tall": ("qwen3", "model.layers.1.mlp.gate_proj.weight", lambda tensor: torch.cat([tensor, tensor[:1]])),
        "wide": ("qwen3", "model.layers.0.self_attn.q_proj.weight", lambda tensor: torch.cat([tensor, tensor[:, :1]], 1)),
        "expert": ("moe", "model.layers.1.mlp.experts.3.up_proj.weight", lambda tensor: None),
        "router": ("moe", "model.layers.0.mlp.gate.weight", lambda tensor: tensor[:-1]),
    }
    assert changes.keys() == BROKEN.keys()
    for folder, (model, name, change) in changes.items():
        target = root / "broken" / folder
        shutil.copytree(root / model, target)
        tensors = load_file(target / "model.safetensors")
        tensors[name] = change(tensors.get(name))
        whole = {key: tensor.clone() for key, tensor in tensors.items() if tensor is not None}
        save_file(whole, target / "model.safetensors", {"format": "pt"})
    cut = root / "broken" / "cut"
    shutil.copytree(root / "qwen3", cut)
    whole_file = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole_file[: len(whole_file) // 2])
    shutil.copytree(root / "llama", root / "broken" / "lost")
    next((root / "broken" / "lost").glob("model-00002-of-*")).unlink()


@pytest.fixture(scope="module")
def folders(root, tiny):
    """``root`` with the models, the broken folders, and ``named``: ``qwen3`` with a type that transformers does not know."""
    write_models(root, tiny.VOCABULARY)
    shutil.copytree(root / "qwen3", root / "named")
    config = json.loads((root / "named" / "config.json").read_text())
    (root / "named" / "config.json").write_text(json.dumps({**config, "model_type": "mine", "architectures": ["Mine"]}))
    write_broken(root)
    return root


@pytest.fixture(scope="module")
def found(folders):
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    script = Path(__file__).with_name("mapping_ranks.py")
    logs = [folders / f"mapping-{rank}.log" for rank in range(WORLD)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            command = [sys.executable, str(script), str(rank), str(WORLD), str(folders)]
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * WORLD, "\n".join(log.read_text()[-3000:] for log in logs)
    return [torch.load(folders / f"mapping-{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def rows(tiny):
    """Those of ``mapping_ranks.py``."""
    return [*tiny.samples(4), ([5 * i % tiny.VOCABULARY for i in range(300)], 7, [1.0] * 7)]


def test_what_is_exported_is_what_was_loaded_bit_for_bit(found):
    for rank in found:
        assert len(rank["cases"]) >= 25
        for name, each in rank["cases"].items():
            assert each["weights"], name
            assert each["folder"], name
            assert each["once"], name
            assert each["buckets"] > 1, name


def test_every_model_has_the_log_probs_of_transformers_however_it_is_shared(found, folders, tiny, rows):
    models = ("qwen3", "deep", "llama", "moe", *OWN)
    wanted = {model: tiny.reference(folders / model, rows)[1] for model in models}
    wanted["named"] = wanted["qwen3"]
    seen = []
    for rank in found:
        for name, each in rank["cases"].items():
            if each["log_probs"] is not None:
                assert torch.allclose(each["log_probs"], wanted[each["model"]], atol=BOUND), name
                seen.append(name)
    assert {name for name in seen if name.endswith("TP1")} == {f"{model} TP1" for model in ("llama", "moe", *OWN)}
    # The last stage of a pipeline alone has log-probs.
    assert len(seen) == sum(1 if "PP2" in name else WORLD for name in found[0]["cases"])


def test_scaled_angles_are_others(folders, tiny, rows, tmp_path):
    """What the former test says of them, it would not say of a model that scales none."""
    for model in ("llama3", "linear"):
        scaled = tiny.reference(folders / model, rows)[1]
        shutil.copytree(folders / model, tmp_path / model)
        config = json.loads((tmp_path / model / "config.json").read_text())
        config |= {"rope_theta": 500_000.0, "rope_scaling": None, "rope_parameters": None}
        (tmp_path / model / "config.json").write_text(json.dumps(config))
        plain = tiny.reference(tmp_path / model, rows)[1]
        assert (scaled - plain).abs().max() > 100 * BOUND, model


def test_folders_that_are_not_the_models_are_one_line_each_on_every_rank(found, folders):
    for rank in found:
        assert rank["refusals"].keys() == {**BROKEN, **CUT}.keys()
        for name, (code, text) in {**BROKEN, **CUT}.items():
            said = rank["refusals"][name]
            assert said[0] == code, name
            assert text.format(folder=folders / "broken" / name) in said[1], name
            assert "\n" not in said[1], name


def test_models_of_functions_are_checked(found):
    for rank in found:
        assert rank["providers"] == {"other_angles": "M553", "own_attention": "M554", "no_model": "M554"}


@pytest.mark.parametrize("name", BROKEN)
def test_the_same_is_known_of_their_tensors_before_anything_is_imported(folders, name):
    folder = folders / "broken" / name
    built = architecture(json.loads((folder / "config.json").read_text()))
    stored = stored_shapes(folder)
    assert stored is not None
    (problem,) = problems(built, stored, folder, headless=False)
    code, text = BROKEN[name]
    assert problem.code == code
    assert text.format(folder=folder) in str(problem)


def test_the_models_written_here_are_what_they_should_be(folders):
    assert json.loads((folders / "biased" / "config.json").read_text())["model_type"] == "qwen2"
    assert "model.layers.0.self_attn.q_proj.bias" in load_file(folders / "biased" / "model.safetensors")
    assert "rope_parameters" not in json.loads((folders / "llama3" / "config.json").read_text())
    mixed = load_file(folders / "mixed" / "model.safetensors")
    assert {"model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.experts.0.up_proj.weight"} <= mixed.keys()
    for folder, tied in (("linear", True), ("llama3", False), ("mixed", True)):
        assert ("lm_head.weight" in load_file(folders / folder / "model.safetensors")) != tied
    for model in (*OWN, "qwen3", "moe", "llama"):
        stored, folder = stored_shapes(folders / model), folders / model
        built = architecture(json.loads((folder / "config.json").read_text()))
        assert stored is not None
        assert list(problems(built, stored, folder, headless=False)) == []
