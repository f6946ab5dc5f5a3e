"""RMSNorm for the layers of megatron-core, which brings none that works with sequence parallelism without other libraries.

y = x / sqrt(mean(x^2) + eps) * weight, in float32 until the product with the weight (arXiv:1910.07467), as transformers does it.
"""

from __future__ import annotations

from typing import Any

import torch

from miles_core.numerics.compiler import compiled


class RMSNorm(torch.nn.Module):
    """Normalises the last dimension.

    Args:
        config: megatron-core's, of which ``sequence_parallel`` and ``params_dtype`` are read.
        hidden_size: of the last dimension.
        eps: added to the mean square.

    Attributes:
        compiled: run by ``torch.compile``, which reads the input once.
        deferred: the input passes through; what gets it normalises it, by :func:`normalised`, on its way.
    """

    compiled = False
    deferred = False

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        device = torch.device("cpu") if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        # Each rank saw its own tokens: megatron-core then adds the gradients of tensor-parallel ranks up.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of any shape ``[..., hidden_size]``, in the dtype of ``x``."""
        if self.deferred:
            return x
        run = compiled(normalised, (0,)) if self.compiled else normalised
        return run(x, self.weight, self.eps)  # type: ignore[no-any-return]


def normalised(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x`` by its last dimension's root mean square, times ``weight``."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)
