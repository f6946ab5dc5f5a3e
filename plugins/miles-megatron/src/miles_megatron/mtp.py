"""The loss of layers that predict tokens further ahead than the next (arXiv:2412.19437, section 2.2).

Over the K layers that are trained, with the loss masks m of the tokens that they predict, sums over the whole optimizer step::

    loss = factor / K  sum_k  sum_t m[t + k + 1] (-log p_k[t + k + 1]) / sum_t m[t + k + 1]

Trunk, embedding and vocabulary head take no gradient of it: only the layers themselves learn. Log-probs are those of a temperature
of 1, and the loss depends neither on rewards nor on how rows are shared out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from miles_core.protocols.backend import OutputRequest
from miles_megatron.models import mtp
from miles_megatron.policy import head_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from miles_megatron.policy import Policy
    from miles_megatron.rows import Rows


class MtpLoss:
    """The loss of one optimizer step.

    Args:
        policy: the model.
        layers: that are trained, the first ones.
        factor: weight of the loss.
        chunk_size: ``--log-probs-chunk-size``.
    """

    def __init__(self, policy: Policy, layers: int, factor: float, chunk_size: int) -> None:
        self.layers = layers
        self._policy = policy
        self._factor = factor
        self._request = OutputRequest(chunk_size=chunk_size)
        self._table: torch.Tensor | None = None

    def begin(self, rows: Sequence[Rows], count: int) -> None:
        """Count what the step's micro-batches predict, and give the last stage the embedding. Collective.

        Args:
            rows: of the pass.
            count: how many of them are micro-batches of the step; what comes behind fills up the pipeline.
        """
        self._micro_batches = count
        counts = [torch.cat([each.ahead[k].weight for each in rows[:count]]).sum() for k in range(self.layers)]
        self._counts = torch.stack(counts).double()
        dist.all_reduce(self._counts, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        self._sums = torch.zeros_like(self._counts)
        self._table = self._embedding()

    @torch.no_grad()
    def _embedding(self) -> torch.Tensor | None:
        """This rank's part of it, on the last stage."""
        first, last = self._policy.chunks[0], self._policy.chunks[-1]
        if parallel_state.get_pipeline_model_parallel_world_size() == 1:
            return first.embedding.word_embeddings.weight.detach()  # type: ignore[no-any-return]
        if last.share_embeddings_and_output_weights:
            return head_weight(last).detach() if last.post_process else None
        if not parallel_state.is_rank_in_embedding_group():
            return None
        group = parallel_state.get_embedding_group()
        table = torch.empty_like(last.output_layer.weight) if last.post_process else first.embedding.word_embeddings.weight.detach()
        dist.broadcast(table, src=dist.get_process_group_ranks(group)[0], group=group)
        return table if last.post_process else None

    def __call__(self, hidden: torch.Tensor, rows: Rows, number: int) -> torch.Tensor:
        """This rank's share of a micro-batch's loss. Collective among tensor and context ranks.

        Args:
            hidden: of the trunk, as :meth:`Policy.stage` gives it.
            rows: the micro-batch.
            number: of it, in the pass.
        """
        assert self._table is not None, "the last stage alone computes losses"
        last = self._policy.chunks[-1]
        head = head_weight(last).detach()
        scalar = torch.zeros((), device=hidden.device)
        state = hidden.detach()
        place = torch.tensor(number, device="cpu")
        for k, (layer, ahead) in enumerate(zip(mtp.of(last), rows.ahead, strict=False)):
            state = layer(state, self._policy.embedded(ahead.tokens, self._table), place)
            found = self._policy.predicted(state, ahead.index, ahead.targets, head, self._request, entropy_grad=False)
            assert found.log_probs is not None
            total = -(found.log_probs * ahead.weight).sum()
            if number < self._micro_batches:
                self._sums[k] += total.detach()
            # Every layer takes a gradient in every micro-batch, if one of zeros, which ranks may be waiting to add up.
            scalar = scalar + total / self._counts[k].clamp(min=torch.finfo(torch.float32).tiny).float()
        return scalar * (self._factor / self.layers if number < self._micro_batches else 0.0)

    def metrics(self) -> dict[str, float]:
        """``mtp_loss``, the mean of the layers' losses before the factor, and each layer's where there are several. Collective.

        They are right on the last stage. Layers that had nothing to predict are left out.
        """
        dist.all_reduce(self._sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        pairs = zip(self._sums.tolist(), self._counts.tolist(), strict=True)
        losses = {k: total / count for k, (total, count) in enumerate(pairs, 1) if count}
        if not losses:
            return {}
        each = {f"mtp_loss_{k}": loss for k, loss in losses.items()} if self.layers > 1 else {}
        return {"mtp_loss": sum(losses.values()) / len(losses), **each}
