"""Log-probs and entropy of response tokens where tensor-parallel ranks share the vocabulary. No rank sees all logits.

With z = logits / temperature, M the largest of them and S = sum(exp(z - M)), over all ranks::

    log_prob = z[target] - M - log S                d log_prob / d z = onehot(target) - p
    entropy  = M + log S - sum(exp(z - M) z) / S    d entropy / d z  = -p (log p + entropy)

Each token costs two small reductions. What is kept for the backward pass besides the logits is ``[N]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch.autograd.function import once_differentiable

from miles_core.training.batch import ModelOutputs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from miles_core.protocols.backend import OutputRequest


@dataclass(frozen=True)
class Vocabulary:
    """This rank's part of the vocabulary.

    Attributes:
        size: tokens of the model, without padding.
        first: this rank's first token.
        group: the ranks that share it.
    """

    size: int
    first: int
    group: ProcessGroup

    def token_outputs(
        self, logits: torch.Tensor, targets: torch.Tensor, request: OutputRequest, *, entropy_grad: bool
    ) -> ModelOutputs:
        """As :func:`miles_core.training.logprobs.token_outputs`, of logits ``[N, padded size / ranks]``. Collective.

        Logits are gathered only when they are themselves requested.
        """
        real = min(max(self.size - self.first, 0), logits.shape[1])
        log_probs, entropy = _Outputs.apply(  # type: ignore[no-untyped-call]
            logits[:, :real], targets, self, request.temperature, request.chunk_size, request.entropy, entropy_grad
        )
        whole = None
        if request.logits:
            whole = gather_from_tensor_model_parallel_region(logits, group=self.group)[:, : self.size]
            whole = whole if request.temperature == 1 else whole / request.temperature
        return ModelOutputs(
            log_probs=log_probs if request.log_probs else None, entropy=entropy if request.entropy else None, logits=whole
        )


class _Outputs(torch.autograd.Function):
    """Log-probs and entropy of every row; the entropy is empty when it is not wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        vocabulary: Vocabulary,
        temperature: float,
        chunk: int,
        entropy: bool,
        entropy_grad: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = targets.shape[0]
        largest = torch.full((rows,), -torch.inf, dtype=torch.float32, device=logits.device)
        sums = torch.zeros((3, rows), dtype=torch.float32, device=logits.device)
        parts = _chunks(rows, chunk)
        if logits.shape[1]:
            for part in parts:
                largest[part] = logits[part].amax(-1).float() / temperature
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=vocabulary.group)
        place, mine = _places(logits, targets, vocabulary)
        if logits.shape[1]:
            for part in parts:
                z = logits[part].float() / temperature
                sums[1, part] = torch.where(mine[part], z.gather(1, place[part, None])[:, 0], 0.0)
                weight = torch.exp(z - largest[part, None])
                sums[0, part] = weight.sum(-1)
                if entropy:
                    # A logit of -inf has weight 0, and 0 times the least finite number is 0.
                    sums[2, part] = weight.mul_(z.clamp_(min=torch.finfo(z.dtype).min)).sum(-1)
        dist.all_reduce(sums, group=vocabulary.group)
        normaliser = largest + sums[0].log()
        log_probs = sums[1] - normaliser
        entropies = normaliser - sums[2] / sums[0] if entropy else normaliser.new_empty(0)
        ctx.save_for_backward(logits, targets, normaliser, entropies)
        ctx.vocabulary, ctx.temperature, ctx.chunk = vocabulary, temperature, chunk
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        ctx.entropy_grad = entropy and entropy_grad
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_prob_grad: torch.Tensor, entropy_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, targets, normaliser, entropies = ctx.saved_tensors
        grad = torch.empty_like(logits)
        place, mine = _places(logits, targets, ctx.vocabulary)
        if not logits.shape[1]:
            return grad, None, None, None, None, None, None
        for part in _chunks(targets.shape[0], ctx.chunk):
            log_p = (logits[part].float() / ctx.temperature).sub_(normaliser[part, None])
            p = log_p.exp()
            weight = log_prob_grad[part, None] / ctx.temperature
            if ctx.entropy_grad:
                log_p.clamp_(min=torch.finfo(log_p.dtype).min).add_(entropies[part, None])
                found = p.mul_(log_p.mul_(-entropy_grad[part, None] / ctx.temperature).sub_(weight))
            else:
                found = p.mul_(-weight)
            found.scatter_add_(1, place[part, None], torch.where(mine[part, None], weight, 0.0))
            grad[part] = found
        return grad, None, None, None, None, None, None


def _places(logits: torch.Tensor, targets: torch.Tensor, vocabulary: Vocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """The targets' columns, and whether they are here; a column that is elsewhere stands as 0."""
    place = targets - vocabulary.first
    mine = (place >= 0) & (place < logits.shape[1])
    return torch.where(mine, place, 0), mine


def _chunks(rows: int, size: int) -> list[slice]:
    if size <= 0:
        return [slice(0, rows)]
    return [slice(start, start + size) for start in range(0, rows, size)]
