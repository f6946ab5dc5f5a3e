"""The compiled AdamW against PyTorch's."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from miles_core.numerics.adamw import BUNDLE, CompiledAdamW

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
SHAPES = [(5, 3)] * (BUNDLE + 1) + [(4,), ()]


ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


def made(device: str) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(device) for i, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("device", DEVICES)
def test_steps_are_those_of_pytorch(device: str) -> None:
    """Scaled gradients of less precision, rounded copies, a parameter without a gradient, and state that either goes on from."""
    mine, theirs = made(device), made(device)
    copies = [torch.zeros_like(param, dtype=torch.bfloat16) for param in mine]
    ours = CompiledAdamW(mine, **SETTINGS)
    known = torch.optim.AdamW(theirs, **SETTINGS, fused=True)
    ours.scale = 0.25
    for number in range(5):
        gradients = [(gradient + number).bfloat16() for gradient in made(device)]
        taken = len(SHAPES) - (number == 2)
        pairs = list(zip(mine, gradients, strict=True))[:taken]
        ours.step(gradients=dict(pairs), rounded=dict(zip(mine, copies, strict=True)))
        for param, gradient in list(zip(theirs, gradients, strict=True))[:taken]:
            param.grad = gradient.float() * 0.25
        known.step()
        known.zero_grad()
        for a, b, rounded in zip(mine, theirs, copies, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
            assert torch.equal(rounded, a.bfloat16())
        if number == 3:
            ours.load_state_dict(copy.deepcopy(known.state_dict()) | {"param_groups": ours.state_dict()["param_groups"]})
    for a, b in zip(mine, theirs, strict=True):
        assert ours.state[a].keys() == known.state[b].keys()
        assert ours.state[a]["step"] == known.state[b]["step"]
    assert ours.state[mine[-1]]["step"] == 4


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_the_parameters_and_rates_of_the_groups(device: str) -> None:
    mine, theirs = made(device), made(device)
    ours = CompiledAdamW.instead_of(torch.optim.AdamW([{"params": mine[:2], "lr": 0.5}, {"params": mine[2:]}], **SETTINGS))
    known = torch.optim.AdamW([{"params": theirs[:2], "lr": 0.5}, {"params": theirs[2:]}], **SETTINGS)
    for params in (mine, theirs):
        for param, gradient in zip(params, made(device), strict=True):
            param.grad = gradient
    ours.step()
    known.step()
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)
