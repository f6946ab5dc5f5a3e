"""Layers that predict tokens further ahead than the next: multi-token prediction (arXiv:2412.19437, section 2.2), as MiMo has it.

With the trunk's hidden states ``h_0`` behind its last norm, the k-th layer computes for position t::

    h_k[t] = norm(layer(input_proj [norm(h_(k-1)[t]); norm(embedding[token t + k])]))

and ``head(h_k[t])`` predicts token t + k + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from torch.utils.checkpoint import checkpoint

from miles_megatron.models.norm import RMSNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYERS = "mtp_layers"
"""Attribute of the last pipeline stage's chunk: megatron-core looks for its own such layers under the name ``mtp``."""


class MtpLayer(torch.nn.Module):
    """One such layer. Norms and projection are whole on every tensor-parallel rank; sequence-parallel ones do their own tokens.

    Args:
        config: megatron-core's.
        layer: what the trunk's layers are made of.
        number: of the layer, counted on from the trunk's; from 1 on.
        stage: virtual pipeline stage that it is part of; None without virtual stages.
    """

    def __init__(self, config: Any, layer: ModuleSpec, number: int, stage: int | None) -> None:
        super().__init__()
        self.config = config
        size, eps = config.hidden_size, config.layernorm_epsilon
        self.token_layernorm, self.hidden_layernorm, self.final_layernorm = (RMSNorm(config, size, eps) for _ in range(3))
        device = torch.device("cpu") if config.use_cpu_initialization else torch.cuda.current_device()
        self.input_proj = torch.nn.Linear(2 * size, size, bias=False, device=device, dtype=config.params_dtype)
        self.input_proj.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.layer: Any = build_module(layer, config=config, layer_number=number, vp_stage=stage)

    def forward(self, hidden: torch.Tensor, embedded: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """The layer's hidden states, ``[T, B, H]``.

        Args:
            hidden: of the layer before it or, of the first one, of the trunk, ``[T, B, H]``.
            embedded: embeddings of the tokens ahead, ``[T, B, H]``.
            number: of the micro-batch, which attention finds its packing by.
        """
        if self.training and self.config.recompute_granularity == "full":
            return checkpoint(self._computed, hidden, embedded, number, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return self._computed(hidden, embedded, number)

    def _computed(self, hidden: torch.Tensor, embedded: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.hidden_layernorm(hidden), self.token_layernorm(embedded)], -1)
        found, _ = self.layer(hidden_states=self.input_proj(both), attention_mask=number)
        return self.final_layernorm(found)  # type: ignore[no-any-return]


def of(chunk: Any) -> Sequence[MtpLayer]:
    """The layers of a chunk; none where it is not the last, or the model has none."""
    return getattr(chunk, LAYERS, ())
