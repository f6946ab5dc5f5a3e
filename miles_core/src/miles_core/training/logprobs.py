"""Log-probs and entropy of response tokens, from logits or from hidden states, without copies of the logits.

With z = logits / temperature and p = softmax(z)::

    log_prob = z[target] - logsumexp(z)          d log_prob / d z = onehot(target) - p
    entropy  = logsumexp(z) - sum(p z)           d entropy / d z  = -p (log p + entropy)

The backward pass computes p anew from the logits, so what is kept besides them is ``[N]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from miles_core.protocols.backend import OutputRequest
from miles_core.training.batch import ModelOutputs


class TokenOutputs(Protocol):
    """How :func:`token_outputs` is called."""

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor, request: OutputRequest, *, entropy_grad: bool) -> ModelOutputs:
        """Outputs of the logits that predict each response token."""
        ...


def token_outputs(logits: torch.Tensor, targets: torch.Tensor, request: OutputRequest, *, entropy_grad: bool) -> ModelOutputs:
    """What ``request`` asks for, from the logits that predict each response token.

    Args:
        logits: ``[N, V]`` in any floating dtype; with ``request.values`` the output of a value head, ``[N, 1]`` or ``[N]``.
        targets: the response tokens, int64, ``[N]``.
        request: ``chunk_size`` rows are turned to float32 at a time, in both directions; the values do not depend on it.
        entropy_grad: whether the entropy carries a gradient. Log-probs carry one wherever ``logits`` does.

    Returns:
        ``[N]`` each, in float32 (float64 for float64 logits). A logit of ``-inf`` is a probability of exactly 0.
    """
    if request.values:
        return ModelOutputs(values=logits.to(_wide_dtype(logits)).reshape(targets.shape))
    log_probs, entropy = _Outputs.apply(  # type: ignore[no-untyped-call]
        logits, targets, request.temperature, request.chunk_size, request.entropy, entropy_grad
    )
    return ModelOutputs(
        log_probs=log_probs if request.log_probs else None,
        entropy=entropy if request.entropy else None,
        logits=_scaled(logits, request.temperature) if request.logits else None,
    )


def token_outputs_from_hidden(
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    request: OutputRequest,
    *,
    entropy_grad: bool,
    of_logits: TokenOutputs = token_outputs,
) -> ModelOutputs:
    """The same from the hidden states before the head, so that the logits of all rows never exist at once.

    Args:
        hidden: ``[N, H]``, rows that predict a response token.
        head: ``[n, H]`` to ``[n, V]``. It runs on ``request.chunk_size`` rows at a time, and once more in the backward pass; on all
            rows when the logits themselves are requested.
        targets, request, entropy_grad: as in :func:`token_outputs`.
        of_logits: what makes outputs of the head's logits; another one for logits that are not whole.
    """
    rows, size = targets.shape[0], request.chunk_size
    if size <= 0 or rows <= size or request.logits:
        return of_logits(head(hidden), targets, request, entropy_grad=entropy_grad)

    def one(part: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        outputs = of_logits(head(part), wanted, request, entropy_grad=entropy_grad)
        return outputs.log_probs, outputs.entropy, outputs.values

    parts = []
    for start in range(0, rows, size):
        chunk = hidden[start : start + size], targets[start : start + size]
        if torch.is_grad_enabled():
            parts.append(checkpoint(one, *chunk, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(one(*chunk))
    log_probs, entropy, values = (torch.cat(column) if column[0] is not None else None for column in zip(*parts, strict=True))
    return ModelOutputs(log_probs=log_probs, entropy=entropy, values=values)


class _Outputs(torch.autograd.Function):
    """Log-probs and entropy of every row; the entropy is empty when it is not wanted."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, temperature: float, chunk: int, entropy: bool, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, wide = targets.shape[0], _wide_dtype(logits)
        log_probs = logits.new_empty(rows, dtype=wide)
        entropies = logits.new_empty(rows if entropy else 0, dtype=wide)
        for part in _chunks(rows, chunk):
            log_p = torch.log_softmax(_scaled(logits[part], temperature), -1, dtype=wide)
            log_probs[part] = log_p.gather(1, targets[part, None])[:, 0]
            if entropy:
                # entr(p) is -p log p, and 0 for a p of 0.
                entropies[part] = torch.special.entr(log_p.exp_(), out=log_p).sum(-1)
        ctx.save_for_backward(logits, targets, entropies)
        ctx.temperature, ctx.chunk = temperature, chunk
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        ctx.entropy_grad = entropy and entropy_grad
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_prob_grad: torch.Tensor, entropy_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, targets, entropies = ctx.saved_tensors
        wide = _wide_dtype(logits)
        grad = torch.empty_like(logits)
        for part in _chunks(targets.shape[0], ctx.chunk):
            z, target = _scaled(logits[part], ctx.temperature), targets[part, None]
            weight = -log_prob_grad[part, None] / ctx.temperature
            if ctx.entropy_grad:
                log_p = torch.log_softmax(z, -1, dtype=wide)
                p = log_p.exp()
                # 0 * -inf would be NaN, 0 * the least finite number is 0.
                log_p.clamp_(min=torch.finfo(wide).min).add_(entropies[part, None])
                log_p.mul_(-entropy_grad[part, None] / ctx.temperature).add_(weight)
                grad[part] = p.mul_(log_p).scatter_add_(1, target, -weight)
            else:
                p = torch.softmax(z, -1, dtype=wide)
                torch.mul(p, weight, out=grad[part])
                grad[part].scatter_(1, target, ((p.gather(1, target) - 1) * weight).to(grad.dtype))
        return grad, None, None, None, None, None


def _chunks(rows: int, size: int) -> list[slice]:
    if size <= 0:
        return [slice(0, rows)]
    return [slice(start, start + size) for start in range(0, rows, size)]


def _wide_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The logits themselves, or divided in float32 or float64."""
    if temperature == 1:
        return logits
    # A tensor with a dimension, unlike a number, makes the quotient of half-precision logits float32 without a copy before.
    return logits / torch.full((1,), temperature, dtype=_wide_dtype(logits), device=logits.device)
