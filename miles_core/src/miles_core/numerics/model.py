"""Swapping the invariant operations into a causal language model of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from miles_core.errors import UsageError
from miles_core.numerics import obstacle
from miles_core.numerics.activation import InvariantSilu
from miles_core.numerics.linear import InvariantLinear

OWNER = "miles-core"
_PARAMETERISED = (nn.Linear, nn.Embedding)


def make_invariant(model: nn.Module) -> None:
    """Make every operation of a model but its attention invariant, in place; names and parameters stay as they are.

    Attention goes through transformers' ``AttentionInterface``: the caller registers one that calls
    :func:`miles_core.numerics.attention.invariant_attention`, as only it knows how its keys lie.

    Args:
        model: a causal LM in fp32 on a CPU, its parameters possibly on the meta device, and in eval mode.

    Raises:
        UsageError: the model has operations that are not known to be invariant (M279).
    """
    config: Any = model.config
    why = obstacle(config.to_dict())
    unknown = sorted({type(module).__name__ for module in model.modules() if not _known(module)})
    if not why and unknown:
        why = f"it has modules of type {', '.join(unknown)}"
    parameter = next(model.parameters())
    if not why and parameter.dtype != torch.float32:
        why = f"its parameters are {str(parameter.dtype).removeprefix('torch.')}, and only float32 is invariant"
    if why:
        raise UsageError(
            "M279",
            f"{type(model).__name__} cannot run in --true-on-policy-mode",
            owner=OWNER,
            why=why,
            fix="leave --true-on-policy-mode out, or take a model that it knows",
        )
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                # The class alone changes, so that parameters, ties and hooks stay where they are.
                child.__class__ = InvariantLinear
            elif _is_silu(child):
                setattr(module, name, InvariantSilu())


def check_place(device: str, owner: str) -> None:
    """Refuse devices whose kernels are not known to be invariant.

    Raises:
        UsageError: the device is no CPU (M278).
    """
    if device != "cpu":
        raise UsageError(
            "M278",
            f"--true-on-policy-mode does not run on {device}",
            owner=owner,
            why="only computation on CPUs is known to be the same in every batch",
            fix="leave --true-on-policy-mode out, or take --device cpu",
        )


def _is_silu(module: nn.Module) -> bool:
    return type(module).__name__ in ("SiLU", "SiLUActivation", "InvariantSilu")


def _known(module: nn.Module) -> bool:
    """Whether a module has no operation of its own, or one that is invariant or gets replaced."""
    own = list(module.parameters(recurse=False))
    return not own or isinstance(module, _PARAMETERISED) or type(module).__name__.endswith("RMSNorm")
