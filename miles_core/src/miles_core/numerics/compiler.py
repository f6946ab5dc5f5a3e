"""Functions that ``torch.compile`` makes one loop of, and what it needs on a machine."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from miles_core.errors import UsageError

PROGRAMS = 64
"""Versions of one function's code that may be compiled."""


def allow_programs() -> None:
    """Let a function have :data:`PROGRAMS` versions: shapes, passes with and without gradients and further models take one each.

    After 8, PyTorch's default, all further ones would run uncompiled.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)


@functools.cache
def compiled(function: Callable[..., Any], varying: tuple[int | None, ...], *, in_parts: bool = False) -> Callable[..., Any]:
    """The function, compiled once for tensors of any length, and anew for each of their other sizes.

    Sizes that are known make the fastest loops: addresses are then worked out once, and not with divisions for each element.

    Args:
        function: what to compile.
        varying: of its first arguments, the dimension that may have any length; None for none.
        in_parts: one loop writes all parts of what is concatenated, and reads what they share once.
    """
    allow_programs()
    run = torch.compile(function, options={"max_pointwise_cat_inputs": 0} if in_parts else None)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for arg, dim in zip(args, varying, strict=False):
            if dim is not None and torch.is_tensor(arg):
                torch._dynamo.maybe_mark_dynamic(arg, dim)
        return run(*args, **kwargs)

    return call


def check_compiler(device: str, flag: str, owner: str) -> None:
    """Look for what ``torch.compile`` needs on this machine.

    Args:
        device: where the model runs.
        flag: the option that asks for it.
        owner: whose option that is.

    Raises:
        UsageError: there is no compiler for it (M582).
    """
    wanted = ("CXX", "g++", "clang++") if device == "cpu" else ("CC", "gcc", "clang")
    why = ""
    if not any(shutil.which(name) for name in (os.environ.get(wanted[0], ""), *wanted[1:])):
        why = f"neither {wanted[1]} nor {wanted[2]} is on the PATH, nor does {wanted[0]} name a compiler"
    elif device != "cpu" and importlib.util.find_spec("triton") is None:
        why = "the package triton is not installed"
    if why:
        raise UsageError("M582", f"{flag} has no compiler", owner=owner, why=why, fix="install one, or leave it out")
