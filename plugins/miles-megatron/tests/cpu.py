"""Lets megatron-core, which is written for CUDA devices, run on a CPU: for the tests of this folder and processes they start.

``apply`` changes what PyTorch says about CUDA in the whole process: current device and RNG are the CPU's, tensors that are asked
for on ``cuda`` come on the CPU, and ``Tensor.type()`` names CUDA types, which the optimizers of megatron-core compare with.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def _place(device: Any) -> Any:
    if isinstance(device, int) and not isinstance(device, bool):
        return device
    return torch.device("cpu") if isinstance(device, (str, torch.device)) and str(device).startswith("cuda") else device


class CudaIsCpu(TorchFunctionMode):
    """Every function of PyTorch, with CUDA devices among its arguments replaced."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.record_stream:
            return None
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if "device" in kwargs:
            kwargs["device"] = _place(kwargs["device"])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if func is torch.Tensor.to:
            args = tuple(_place(arg) for arg in args)
        return func(*args, **kwargs)


class _NoStream:
    """A CUDA stream or event of a processor that has none."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *_: Any) -> None: ...


def _to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


_applied: list[CudaIsCpu] = []


def apply() -> None:
    """Once in a process, before megatron-core is imported."""
    if _applied:
        return
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    cuda.synchronize = lambda *_, **__: None
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.manual_seed(seed)
    cuda.current_stream = lambda *_, **__: _NoStream()
    cuda.stream = lambda *_, **__: _NoStream()
    # The front half of the compiler, which decides on programs; writing them out takes half a minute.
    torch.compile = functools.partial(torch.compile, backend="eager")
    cuda.Stream = cuda.Event = _NoStream
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    from megatron.core.transformer.moe import token_dispatcher

    token_dispatcher.maybe_move_tensor_to_cpu = _to_host
    mode = CudaIsCpu()
    mode.__enter__()
    _applied.append(mode)
