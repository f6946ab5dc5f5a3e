from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import BloomConfig, Gemma2Config, LlamaConfig, Qwen3Config, Qwen3NextConfig

from miles_core.errors import UsageError
from miles_core.numerics import varlen
from miles_fsdp.attention import PACKED, Packing, check_packable, choose_attention, packed_attention
from miles_fsdp.model import build_empty

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def segments(lengths, device="cpu", dtype=torch.float32):
    torch.manual_seed(0)
    total = sum(lengths)
    tensors = [torch.randn(1, heads, total, 16, device=device, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)]
    bounds = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    batch = SimpleNamespace(cu_seqlens=bounds, max_seqlen=max(lengths), tokens=torch.zeros(1, total, device=device))
    return tensors, batch


def one_by_one(tensors, lengths, window):
    """Softmax attention of each segment, written out."""
    query, key, value = (x.float() for x in tensors)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    parts, start = [], 0
    for length in lengths:
        q, k, v = (x[:, :, start : start + length] for x in (query, key, value))
        back = torch.arange(length)[:, None] - torch.arange(length)[None]
        seen = ((back >= 0) & (back < (window or length))).to(q.device)
        scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(~seen, float("-inf"))
        parts.append(scores.softmax(-1) @ v)
        start += length
    return torch.cat(parts, 2).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 3])
def test_packed_attention_equals_attention_of_each_segment(window):
    lengths = [5, 1, 9, 6, 17, 2]
    tensors, batch = segments(lengths)
    packing = Packing.of(batch, varlen=False)
    assert len(packing.groups) == 5
    out, _ = packed_attention(None, *tensors, None, scaling=0.3, sliding_window=window, packing=packing)
    wanted = one_by_one(tensors, lengths, window)
    assert torch.allclose(out, wanted, atol=1e-6)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), tensors)
    for got, want in zip(found, torch.autograd.grad((wanted * weight).sum(), tensors), strict=True):
        assert torch.allclose(got, want, atol=2e-6)


def test_segments_of_like_length_share_one_call():
    _, batch = segments([20, 22, 24, 21])
    packing = Packing.of(batch, varlen=False)
    assert [(rows, length) for _, rows, length in packing.groups] == [(4, 24)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 7])
def test_variable_length_kernels_equal_attention_of_each_segment(window):
    lengths = [5, 100, 9, 64]
    tensors, batch = segments(lengths, "cuda", torch.bfloat16)
    packing = Packing.of(batch, varlen=True)
    out, _ = packed_attention(None, *tensors, None, scaling=0.3, sliding_window=window, packing=packing)
    wanted = one_by_one(tensors, lengths, window)
    assert torch.allclose(out.float(), wanted, atol=2e-2)
    weight = torch.randn_like(wanted)
    found = torch.autograd.grad((out.float() * weight).sum(), tensors)
    for got, want in zip(found, torch.autograd.grad((wanted * weight).sum(), tensors), strict=True):
        assert torch.allclose(got.float(), want.float(), atol=6e-2)


def choose(wanted, *, chosen=False, device=CPU, compute=torch.float32, config=None):
    return choose_attention(
        wanted, chosen=chosen, device=device, compute=compute, model_config=config or Qwen3Config(), announce=True
    )


def test_the_default_falls_back_with_a_notice(caplog):
    assert choose("flash_attention_2") == (PACKED, "sdpa", "eager")
    assert "does not run on cpu" in caplog.text
    assert choose("flash_attention_2", device=GPU, compute=torch.float32)[0] == PACKED


def test_flash_attention_without_its_package_is_pytorch_s(monkeypatch):
    monkeypatch.setattr(varlen, "_pytorch", object())
    half = {"device": GPU, "compute": torch.bfloat16}
    assert choose("flash_attention_2", chosen=True, **half) == (PACKED,)
    assert choose("flash_attention_2", **half) == (PACKED, "sdpa", "eager")
    with pytest.raises(UsageError, match=r"M341 .*lack what gemma2 needs"):
        choose("flash_attention_2", chosen=True, config=Gemma2Config(), **half)
    monkeypatch.setattr(varlen, "_pytorch", None)
    with pytest.raises(UsageError, match=r"M341 .*came with PyTorch 2.10"):
        choose("flash_attention_2", chosen=True, **half)


def test_models_with_soft_caps_fall_back_to_transformers_own():
    assert choose("flash_attention_2", config=Gemma2Config()) == ("sdpa", "eager")


def test_an_impossible_choice_is_a_usage_error():
    with pytest.raises(UsageError, match=r"M341 .*does not run on cpu"):
        choose("flash_attention_2", chosen=True)


def test_a_possible_choice_is_kept():
    assert choose("eager", chosen=True) == ("eager",)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (Qwen3NextConfig(num_hidden_layers=4, hidden_size=32), "layers of type linear_attention"),
        (BloomConfig(n_layer=1, hidden_size=32), "does not use transformers' attention interface"),
    ],
)
def test_models_that_mix_the_samples_of_a_row_are_not_packed(config, why):
    with pytest.raises(UsageError, match=f"M345 .*{why}.*--qkv-format bshd"):
        check_packable(build_empty(config, [PACKED, "eager"]))


def test_models_of_the_attention_interface_are_packed():
    check_packable(build_empty(LlamaConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2), [PACKED]))
