"""Swapping the operations of a whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from miles_core.errors import UsageError
from miles_core.numerics.activation import InvariantSilu
from miles_core.numerics.linear import InvariantLinear
from miles_core.numerics.model import check_place, make_invariant

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def build(kind: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_model_keeps_its_parameters_and_its_function(kind: str) -> None:
    model = build(kind, tie_word_embeddings=True)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        before = model(tokens).logits
        names = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
        make_invariant(model)
        assert names == {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
        assert torch.allclose(model(tokens).logits, before, atol=1e-5)
    kinds = {type(module) for module in model.modules()}
    assert {InvariantLinear, InvariantSilu} <= kinds
    assert nn.Linear not in kinds
    make_invariant(model)
    assert sum(isinstance(module, InvariantSilu) for module in model.modules()) == 1


def test_models_with_other_operations_are_refused() -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    with pytest.raises(UsageError, match=r"M279 .*Qwen3MoeForCausalLM cannot run .*qwen3_moe"):
        make_invariant(build("qwen3_moe", **experts))
    with pytest.raises(UsageError, match=r"M279 .*gelu"):
        make_invariant(build("llama", hidden_act="gelu"))
    odd = build("llama")
    odd.model.layers[0].extra = nn.Conv1d(2, 2, 1)
    with pytest.raises(UsageError, match=r"M279 .*modules of type Conv1d"):
        make_invariant(odd)
    with pytest.raises(UsageError, match=r"M279 .*bfloat16"):
        make_invariant(build("llama").to(torch.bfloat16))


def test_only_processors_are_known_to_be_invariant() -> None:
    check_place("cpu", "owner")
    with pytest.raises(UsageError, match=r"M278 owner: .*cuda"):
        check_place("cuda", "owner")
