"""FP8 rollouts: the trainer sends what FP8 servers hold, matrices in e4m3 with a scale for every block of 128 x 128.

That is the form of FP8 checkpoints ("DeepSeek-V3 Technical Report", 2024, section 3.3.2): ``w = q * s`` with ``s = max|w| / 448``
of the block, stored as ``NAME`` (float8_e4m3fn) and ``NAME_scale_inv`` (float32). Servers quantise activations as they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from miles_core.options import Config
from miles_sglang.options import ServerOptions

if TYPE_CHECKING:
    import torch

METHOD = "fp8"
BLOCK = 128
LARGEST = 448.0
"""The largest number of e4m3."""
SCALE = "_scale_inv"
ROUTERS = ("gate.weight", "router.weight")
"""Ends of the names of matrices that choose experts, which stay as they are."""
OVERRIDE: dict[str, Any] = {
    "quantization_config": {
        "quant_method": METHOD,
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [BLOCK, BLOCK],
    }
}
"""What a server is told of the checkpoint, which itself is not quantised."""


def is_quantised(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is sent in FP8: the matrices of layers, without the routers of experts."""
    return len(shape) == 2 and name.endswith(".weight") and ".layers." in name and not name.endswith(ROUTERS)


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix ``[N, K]`` in e4m3, and the scales of its blocks, float32 ``[ceil(N/128), ceil(K/128)]``."""
    import torch

    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    scales = blocks.abs().amax((1, 3)).clamp_min(1e-12) / LARGEST
    scaled = (blocks / scales[:, None, :, None]).flatten(0, 1).flatten(1)
    return scaled[:rows, :columns].to(torch.float8_e4m3fn).contiguous(), scales


class Prepared:
    """What an export of weights becomes before it is published, in the trainer's process."""

    def __init__(self, config: Config) -> None:
        self._quantises = config.get(ServerOptions).quantization == METHOD

    def __call__(self, export: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors as servers hold them; the export itself where they are not quantised."""
        for name, tensor in export:
            if self._quantises and is_quantised(name, tensor.shape):
                weight, scales = quantise(tensor)
                yield name, weight
                yield name + SCALE, scales
            else:
                yield name, tensor
