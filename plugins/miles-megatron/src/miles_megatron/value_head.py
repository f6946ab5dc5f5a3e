"""The value head of a critic: one output in the place of the vocabulary head, on the last pipeline stage."""

from __future__ import annotations

from typing import Any

import torch

HEAD = "score"
NAMES = (f"{HEAD}.weight", f"{HEAD}.bias")
"""What HF classifiers call its parameters, whole on every rank of the last stage."""
INIT_STD = 0.02


def install(chunks: list[Any], seed: int) -> None:
    """Replace the vocabulary head by ``Linear(hidden, 1)`` with a bias, in fp32.

    Its weights are normal with standard deviation 0.02 and alike on every rank, its bias is 0.
    """
    for chunk in chunks:
        # An embedding that was tied to the vocabulary head has nobody left to share with.
        chunk.share_embeddings_and_output_weights = False
        if not chunk.post_process:
            continue
        del chunk.output_layer
        device = torch.device("cpu") if chunk.config.use_cpu_initialization else torch.cuda.current_device()
        head = torch.nn.Linear(chunk.config.hidden_size, 1, device=device, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.copy_(INIT_STD * torch.randn(head.weight.shape, generator=generator, device="cpu"))
            head.bias.zero_()
        setattr(chunk, HEAD, head)


def of(chunk: Any) -> torch.nn.Linear | None:
    """The value head of a chunk that has one."""
    head = getattr(chunk, HEAD, None)
    return head if isinstance(head, torch.nn.Linear) else None
