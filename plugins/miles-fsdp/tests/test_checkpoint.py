from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from miles_core.errors import UsageError
from miles_core.hf import HfWeights
from miles_fsdp.attention import PACKED
from miles_fsdp.model import build_empty, check_names, read_config


@pytest.fixture
def broken(checkpoints, tmp_path):
    """A copy of qwen3 whose tensors a test changes."""

    def make(change):
        target = tmp_path / "broken"
        shutil.copytree(checkpoints / "qwen3", target)
        tensors = load_file(target / "model.safetensors")
        change(tensors)
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        return target

    return make


def check(directory) -> None:
    check_names(build_empty(read_config(directory), [PACKED]), HfWeights(directory))


def test_rows_of_a_tensor_are_read_from_a_sharded_checkpoint(checkpoints):
    directory = checkpoints / "llama"
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    weights = HfWeights(directory)
    whole = load_file(directory / index["lm_head.weight"])["lm_head.weight"]
    assert torch.equal(weights.read("lm_head.weight", (7, 20)), whole[7:20])
    assert weights.read("lm_head.weight", (131, 131)).shape == (0, 32)
    assert torch.equal(weights.read("lm_head.weight"), whole)


def test_a_folder_without_weights_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"M340 .*no weights in"):
        HfWeights(tmp_path)


def test_a_truncated_file_is_a_usage_error(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(UsageError, match=r"M340 .*cannot read"):
        HfWeights(tmp_path)


def test_a_folder_without_config_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"M340"):
        read_config(tmp_path)


def test_missing_and_unexpected_tensors_are_named(broken):
    def change(tensors):
        tensors["model.layers.0.extra"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    with pytest.raises(UsageError) as caught:
        check(broken(change))
    assert caught.value.code == "M342"
    assert "1 missing (model.layers.1.mlp.up_proj.weight), 1 unexpected (model.layers.0.extra)" in caught.value.line()


def test_another_shape_is_named(broken):
    def change(tensors):
        tensors["model.norm.weight"] = torch.zeros(16)

    with pytest.raises(UsageError, match=r"M343 .*model.norm.weight in .* has shape \[16\], the model needs \[32\]"):
        check(broken(change))


def test_an_old_checkpoint_with_rotary_frequencies_still_fits(broken):
    check(broken(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})))


def test_the_empty_model_has_real_buffers_and_tied_weights(checkpoints):
    model = build_empty(read_config(checkpoints / "qwen3"), [PACKED])
    assert all(param.is_meta for param in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    buffers = dict(model.named_buffers())
    expected = 1.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    assert torch.allclose(buffers["model.rotary_emb.inv_freq"], expected)
