"""Log-probs and entropy of response tokens, from logits or from hidden states, without copies of the logits.

With z = logits / temperature and p = softmax(z)::

    log_prob = z[target] - logsumexp(z)          d log_prob / d z = onehot(target) - p
    entropy  = logsumexp(z) - sum(p z)           d entropy / d z  = -p (log p + entropy)

The backward pass computes p anew from the logits, so what is kept besides them is ``[N]``. In float32 no more than a GiB of logits
exists at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from miles_core.numerics.compiler import compiled as compiled_loop
from miles_core.protocols.backend import OutputRequest
from miles_core.training.batch import ModelOutputs

FLOATS = 2**28
"""Logits that are turned to float32 at a time, at most."""
_LEAST = -1e5
"""Taken for log-probs of less, whose p is 0 in any precision: 0 * -inf would be NaN."""


class TokenOutputs(Protocol):
    """How :func:`token_outputs` is called."""

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor, request: OutputRequest, *, entropy_grad: bool) -> ModelOutputs:
        """Outputs of the logits that predict each response token."""
        ...


def token_outputs(
    logits: torch.Tensor, targets: torch.Tensor, request: OutputRequest, *, entropy_grad: bool, compiled: bool = False
) -> ModelOutputs:
    """What ``request`` asks for, from the logits that predict each response token.

    Args:
        logits: ``[N, V]`` in any floating dtype; with ``request.values`` the output of a value head, ``[N, 1]`` or ``[N]``.
        targets: the response tokens, int64, ``[N]``.
        request: ``chunk_size`` rows are turned to float32 at a time, in both directions; the values do not depend on it.
        entropy_grad: whether the entropy carries a gradient. Log-probs carry one wherever ``logits`` does.
        compiled: run by ``torch.compile``, which reads the logits a few times in place of a few dozen.

    Returns:
        ``[N]`` each, in float32 (float64 for float64 logits). A logit of ``-inf`` is a probability of exactly 0.
    """
    if request.values:
        return ModelOutputs(values=logits.to(_wide_dtype(logits)).reshape(targets.shape))
    log_probs, entropy = _Outputs.apply(  # type: ignore[no-untyped-call]
        logits, targets, request.temperature, request.chunk_size, request.entropy, entropy_grad, compiled
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
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        chunk: int,
        entropy: bool,
        entropy_grad: bool,
        compiled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, wide = targets.shape[0], _wide_dtype(logits)
        log_probs = logits.new_empty(rows, dtype=wide)
        entropies = logits.new_empty(rows if entropy else 0, dtype=wide)
        run: Any = compiled_loop(_outputs_of_rows, (0, 0)) if compiled else _outputs_of_rows
        for part in _chunks(logits, chunk):
            log_probs[part], found = run(logits[part], targets[part], temperature, entropy)
            if entropy:
                entropies[part] = found
        ctx.save_for_backward(logits, targets, entropies)
        ctx.temperature, ctx.chunk, ctx.compiled = temperature, chunk, compiled
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        ctx.entropy_grad = entropy and entropy_grad
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_prob_grad: torch.Tensor, entropy_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, targets, entropies = ctx.saved_tensors
        grad = torch.empty_like(logits)
        run = compiled_loop(_fused_gradient_of_rows, (0, 0, None, 0)) if ctx.compiled else _gradient_of_rows
        for part in _chunks(logits, ctx.chunk):
            of_entropy = (entropies[part], entropy_grad[part]) if ctx.entropy_grad else None
            grad[part] = run(logits[part], targets[part], ctx.temperature, log_prob_grad[part], of_entropy)
        return grad, None, None, None, None, None, None


def _outputs_of_rows(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    log_p = torch.log_softmax(_scaled(logits, temperature), -1, dtype=_wide_dtype(logits))
    log_probs = log_p.gather(1, targets[:, None])[:, 0]
    # entr(p) is -p log p, and 0 for a p of 0.
    return log_probs, torch.special.entr(log_p.exp_()).sum(-1) if entropy else None


def _gradient_of_rows(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    log_prob_grad: torch.Tensor,
    of_entropy: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """The gradient of the logits, from the gradients of log-probs and entropy; ``of_entropy`` is the entropy and its gradient."""
    wide, target = _wide_dtype(logits), targets[:, None]
    z, weight = _scaled(logits, temperature), -log_prob_grad[:, None] / temperature
    if of_entropy is not None:
        entropies, entropy_grad = of_entropy
        log_p = torch.log_softmax(z, -1, dtype=wide)
        p = log_p.exp()
        log_p.clamp_(min=_LEAST).add_(entropies[:, None])
        log_p.mul_(-entropy_grad[:, None] / temperature).add_(weight)
        return p.mul_(log_p).scatter_add_(1, target, -weight)
    p = torch.softmax(z, -1, dtype=wide)
    grad = torch.empty_like(logits)
    torch.mul(p, weight, out=grad)
    return grad.scatter_(1, target, ((p.gather(1, target) - 1) * weight).to(grad.dtype))


def _fused_gradient_of_rows(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    log_prob_grad: torch.Tensor,
    of_entropy: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """The same element by element, which a compiler makes one loop of, where it would not scatter."""
    wide = _wide_dtype(logits)
    log_p = torch.log_softmax(_scaled(logits, temperature), -1, dtype=wide)
    p, chosen = log_p.exp(), torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    grad = (chosen.to(wide) - p) * log_prob_grad[:, None]
    if of_entropy is not None:
        entropies, entropy_grad = of_entropy
        grad = grad - p * (log_p.clamp(min=_LEAST) + entropies[:, None]) * entropy_grad[:, None]
    return (grad / temperature).to(logits.dtype)


def _chunks(logits: torch.Tensor, size: int) -> list[slice]:
    rows, most = logits.shape[0], max(FLOATS // max(logits.shape[1], 1), 1)
    step = most if size <= 0 else min(size, most)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _wide_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The logits themselves, or divided in float32 or float64."""
    if temperature == 1:
        return logits
    # A tensor with a dimension, unlike a number, makes the quotient of half-precision logits float32 without a copy before.
    return logits / torch.full((1,), temperature, dtype=_wide_dtype(logits), device=logits.device)
