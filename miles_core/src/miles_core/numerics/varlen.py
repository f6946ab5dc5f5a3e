"""Causal attention of packed rows by a variable-length kernel: FlashAttention 4 where it is installed, else PyTorch's own.

FlashAttention 4 (the package flash-attn-4) is built for Hopper and Blackwell GPUs; PyTorch's kernel is FlashAttention 2, whose
algorithm is the same (arXiv:2307.08691).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
from typing import Any

import torch

from miles_core.accelerator.device import accelerator_of

_pytorch: Any = None
with contextlib.suppress(ImportError):  # PyTorch before 2.10 has none
    from torch.nn.attention.varlen import varlen_attn as _pytorch

HALF = (torch.float16, torch.bfloat16)
"""Precisions that these kernels have."""
GROUPS_HEADS = _pytorch is not None and "enable_gqa" in inspect.signature(_pytorch).parameters
"""Whether PyTorch's kernel takes fewer key heads than query heads."""
FLASH4 = "flash_attn.cute"
_FLASH4_CHIPS, _FLASH4_DIMS = (9, 10), range(64, 129, 8)
_log = logging.getLogger(__name__)


def has_kernel() -> bool:
    """Whether this PyTorch has a variable-length kernel."""
    return _pytorch is not None


def runs_there(device: torch.device, compute: torch.dtype) -> bool:
    """Whether packed rows in this precision run on a variable-length kernel there."""
    return device.type == "cuda" and compute in HALF and has_kernel()


# Kernels of FlashAttention 4 are made at run time, by Python that a compiler cannot look into.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def variable_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Causal softmax attention within each segment of a packed row.

    Args:
        query: ``[T, heads, D]``; ``key`` and ``value`` have ``[T, key heads, D]``.
        bounds: places where segments begin, and T, int32, ``[segments + 1]``.
        longest: tokens of the longest segment.
        scale: of the scores; None is ``D ** -0.5``.
        window: tokens that a query sees, itself included; None is all before it.

    Returns:
        ``[T, heads, D]``.
    """
    if query.shape[-1] in _FLASH4_DIMS and (kernel := _flash4(query.device)) is not None:
        return _by_flash4(kernel, query, key, value, bounds, longest, scale, window)
    further: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if GROUPS_HEADS:
            further["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    back = -1 if window is None else window - 1
    return _pytorch(  # type: ignore[no-any-return]
        query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(back, 0), **further
    )


def _by_flash4(
    kernel: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    out = kernel(
        query,
        key,
        value,
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        causal=window is None,
        window_size=(None, None) if window is None else (window - 1, 0),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


@functools.cache
def _flash4(device: torch.device) -> Any:
    """The function of FlashAttention 4, if it runs there."""
    if accelerator_of(device).nvidia_generation(device) not in _FLASH4_CHIPS:
        return None
    try:
        found = importlib.import_module(FLASH4).flash_attn_varlen_func
    except ModuleNotFoundError as cause:
        # Without the package there is nothing to say; without a part of it there is.
        if not FLASH4.startswith(str(cause.name)):
            _log.warning("flash-attn-4 is not used: %s", cause)
        return None
    except (ImportError, OSError, RuntimeError, AttributeError) as cause:
        _log.warning("flash-attn-4 is not used: %s", cause)
        return None
    _log.info("attention runs on FlashAttention 4")
    return found
