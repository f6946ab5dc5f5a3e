"""Weights that go by megatron-bridge, against those that go by the tables: bit for bit, on one rank and on two."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SECONDS = 240
ABSENT = 77
BUCKET = 4096


def write_models(root: Path, vocabulary: int) -> None:
    """``biased`` (Qwen2), ``mixed`` (a layer without and one with experts, tied), ``named`` (of no known type), ``missing``."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"vocab_size": vocabulary, "num_hidden_layers": 2}
    biased = Qwen2ForCausalLM(Qwen2Config(**sizes, initializer_range=0.2))
    with torch.no_grad():
        for name, param in biased.named_parameters():
            if name.endswith("bias"):
                param.normal_()
    biased.save_pretrained(root / "biased")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
    mixed = Qwen3MoeConfig(**sizes, **experts, head_dim=8, mlp_only_layers=[0], tie_word_embeddings=True)
    Qwen3MoeForCausalLM(mixed).save_pretrained(root / "mixed")
    for name in ("named", "missing"):
        shutil.copytree(root / "qwen3", root / name)
    config = json.loads((root / "named" / "config.json").read_text())
    (root / "named" / "config.json").write_text(json.dumps({**config, "model_type": "mine", "architectures": ["Mine"]}))
    tensors = load_file(root / "missing" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, root / "missing" / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def folders(helpers, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge")
    helpers.write_checkpoints(folder)
    helpers.write_mimo(folder)
    write_models(folder, tiny.VOCABULARY)
    return folder


@pytest.fixture(scope="module", params=[1, 2])
def found(request, folders):
    """What each process found: see ``bridge_ranks.py``."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    if importlib.util.find_spec("megatron.bridge") is None:
        pytest.skip("megatron-bridge is not installed")
    world, script = request.param, Path(__file__).with_name("bridge_ranks.py")
    logs = [folders / f"bridge-{world}-{rank}.log" for rank in range(world)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            command = [sys.executable, str(script), str(rank), str(world), str(folders)]
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    if codes == [ABSENT] * world:
        pytest.skip(logs[0].read_text().splitlines()[-1])
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for log in logs)
    return [torch.load(folders / f"bridge-{world}-{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.mark.slow
def test_weights_by_megatron_bridge_are_those_by_the_tables(found):
    for rank in found:
        assert len(rank["cases"]) >= 4
        for name, said in rank["cases"].items():
            assert said["conversion"] == "BridgeConversion", name
            assert said["loaded"], name
            assert said["published"], name
            assert said["once"], name
            assert said["bucket"] <= BUCKET < said["bucket"] * said["buckets"], name
            assert said["folder"], name
            assert said["config"], name


@pytest.mark.slow
def test_what_megatron_bridge_cannot_do_is_one_line(found):
    for rank in found:
        codes = {name: code for name, (code, _) in rank["refusals"].items()}
        assert codes == {"critic": "M578", "family": "M579", "name": "M579", "missing": "M342", "layers": "M579"}
        assert "it has no mapping of decoder.layers.0.mlp.linear_fc1.weight" in rank["refusals"]["layers"][1]
        assert all("\n" not in text for _, text in rank["refusals"].values())


CHOICE = """
from pathlib import Path
from miles_core.errors import UsageError
from miles_megatron import mapping
from miles_megatron.conversion import conversion
from miles_megatron.options import MegatronOptions

print(conversion(MegatronOptions(), Path("tiny"), value_head=True) is mapping)
for value_head in (False, True):
    try:
        conversion(MegatronOptions(megatron_to_hf_mode="bridge"), Path("tiny"), value_head=value_head)
    except UsageError as error:
        print(error)
"""


@pytest.mark.parametrize(
    "broken", ["raise ImportError('No module named transformer_engine')", "import nothing.of.this.name", "1 / 0"]
)
def test_the_choice_is_made_in_one_place_and_a_package_that_does_not_run_is_one_line(tmp_path, broken):
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    package = tmp_path / "megatron" / "bridge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(broken)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "ignore", "-c", CHOICE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    by_tables, bridge, critic = done.stdout.splitlines()
    assert by_tables == "True"
    assert bridge.startswith("M577 miles-megatron: --megatron-to-hf-mode bridge cannot import megatron-bridge: ")
    assert 'pip install "miles-megatron[bridge]"' in bridge
    assert critic.startswith("M578 miles-megatron: --megatron-to-hf-mode bridge does not go with a critic")
