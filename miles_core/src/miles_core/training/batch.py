"""A micro-batch as a backend sees it, and what the model says about it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class MicroBatch:
    """Samples that go through the model together.

    Two layouts, by ``--qkv-format``: ``thd`` has one row ``[1, T]`` in which samples follow each other, with ``cu_seqlens``
    and positions that restart at 0 (padding at the end, if any, is one more segment); ``bshd`` has ``[B, L]`` with right
    padding and ``attention_mask``. B is the number of samples, N the number of their response tokens.

    Attributes:
        tokens, position_ids: int64, ``[1, T]`` or ``[B, L]``.
        cu_seqlens: int32, ``[segments + 1]``; thd only.
        max_seqlen: tokens of the longest segment.
        attention_mask: bool, ``[B, L]``; bshd only.
        rows: position of each sample in the rank's rows, B entries.
        lengths: response tokens of each sample, B entries.
        logit_index: for each response token, the position in the flattened tokens whose logits predict it, int64, ``[N]``.
        targets: the response tokens, int64, ``[N]``.
        data: per-token inputs of the loss, ``[N]`` each, by field name of ``LossInputs``.
        routes: experts to send each of the flattened tokens to, int16, ``[T or B * L, layers, top_k]``; -1 leaves the choice to
            the router. Layers are all decoder layers. Stays in host memory, as it is as large as many activations. None: all
            routers choose.
    """

    tokens: torch.Tensor
    position_ids: torch.Tensor
    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    logit_index: torch.Tensor
    targets: torch.Tensor
    max_seqlen: int
    cu_seqlens: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    data: dict[str, torch.Tensor] = field(default_factory=dict)
    routes: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.tokens.numel()

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on another device, except for its routes."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), torch.Tensor) and f.name != "routes"
        }
        return dataclasses.replace(self, **moved, data={k: v.to(device, non_blocking=True) for k, v in self.data.items()})


@dataclass(frozen=True)
class ModelOutputs:
    """What was requested of a forward pass, ``[N]`` each, float32, in the order of the micro-batch's ``targets``.

    ``logits`` are ``[N, V]``, with gradient, and in the precision of the computation. ``routes`` are the experts that the routers
    chose, as :attr:`MicroBatch.routes` has them.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    values: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    routes: torch.Tensor | None = None
