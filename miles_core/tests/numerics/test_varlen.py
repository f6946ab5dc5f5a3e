"""Variable-length attention: which kernel runs, and on a GPU what it computes."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from miles_core.numerics import varlen

GPU = torch.device("cuda", 0)
LENGTHS = (1, 200, 513, 64, 7)


@pytest.fixture
def _on_hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    varlen._flash4.cache_clear()
    yield
    varlen._flash4.cache_clear()


def test_kernels_are_for_half_precision_on_gpus():
    assert varlen.has_kernel()
    assert varlen.runs_there(GPU, torch.bfloat16)
    assert not varlen.runs_there(GPU, torch.float32)
    assert not varlen.runs_there(torch.device("cpu"), torch.bfloat16)


@pytest.mark.usefixtures("_on_hopper")
def test_an_installed_flash_attention_4_is_called_with_what_it_needs(monkeypatch, caplog):
    calls = []
    package = SimpleNamespace(flash_attn_varlen_func=lambda q, k, v, **settings: calls.append(settings) or (q + 1, None))
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", package)
    caplog.set_level("INFO")
    kernel = varlen._flash4(GPU)
    assert "attention runs on FlashAttention 4" in caplog.text
    query = torch.zeros(4, 2, 64)
    bounds = torch.tensor([0, 1, 4], dtype=torch.int32)
    out = varlen._by_flash4(kernel, query, query, query, bounds, 3, 0.5, None)
    assert torch.equal(out, query + 1)
    varlen._by_flash4(kernel, query, query, query, bounds, 3, None, 2)
    assert [(call["causal"], call["window_size"], call["softmax_scale"]) for call in calls] == [
        (True, (None, None), 0.5),
        (False, (1, 0), None),
    ]
    assert all(call["cu_seqlens_q"] is bounds and call["max_seqlen_k"] == 3 for call in calls)


@pytest.mark.usefixtures("_on_hopper")
def test_a_broken_flash_attention_4_is_left_out_with_a_warning(monkeypatch, caplog, tmp_path):
    folder = tmp_path / "flash_attn" / "cute"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import a_compiler_that_is_not_there\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    assert varlen._flash4(GPU) is None
    assert not caplog.records
    varlen._flash4.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    assert varlen._flash4(GPU) is None
    assert "flash-attn-4 is not used: No module named 'a_compiler_that_is_not_there'" in caplog.text


def written(query, key, value, scale, window):
    """Softmax attention of each segment in float32, written out."""
    groups = query.shape[1] // key.shape[1]
    parts = []
    for q, k, v in zip(*(x.float().split(LENGTHS) for x in (query, key, value)), strict=True):
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        back = torch.arange(len(q), device=q.device)[:, None] - torch.arange(len(q), device=q.device)
        seen = (back >= 0) & (back < (window or len(q)))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(parts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("flash4", [False, True])
@pytest.mark.parametrize(
    ("heads", "keys", "size", "window"), [(4, 4, 64, None), (8, 2, 128, None), (16, 8, 128, None), (4, 2, 128, 50)]
)
def test_outputs_and_gradients(heads, keys, size, window, flash4, monkeypatch):
    if not flash4:
        monkeypatch.setattr(varlen, "_flash4", lambda device: None)
    elif varlen._flash4(GPU) is None:
        pytest.skip("needs flash-attn-4")
    torch.manual_seed(0)
    total = sum(LENGTHS)
    shapes = ((total, heads, size), (total, keys, size), (total, keys, size))
    tensors = [torch.randn(shape, device=GPU, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    bounds = torch.tensor([0, *LENGTHS], device=GPU).cumsum(0).to(torch.int32)
    out = varlen.variable_length(*tensors, bounds, max(LENGTHS), scale=0.1, window=window)
    wanted = written(*tensors, 0.1, window)
    assert torch.allclose(out.float(), wanted, atol=2e-2)
    weight = torch.randn_like(wanted)
    found = torch.autograd.grad((out.float() * weight).sum(), tensors)
    for got, want in zip(found, torch.autograd.grad((wanted * weight).sum(), tensors), strict=True):
        assert torch.allclose(got.float(), want.float(), atol=6e-2, rtol=2e-2)
