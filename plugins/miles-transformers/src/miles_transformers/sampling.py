"""Sampling next tokens, vectorised over rows.

A row's draw is a function of its logits, its seed and the number of the token, never of its slot or its neighbours: a
counter-based hash (SplitMix64, Steele et al. 2014) gives one uniform number, which picks a token by the inverse of the
cumulative distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_BITS = 48


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix(x: Tensor) -> Tensor:
    # int64 products wrap like uint64 ones; a right shift needs its sign bits masked off.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(_MIX_1)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(_MIX_2)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(seed: Tensor, counter: Tensor) -> Tensor:
    """Numbers in (0, 1), float64 ``[N]``, from int64 seeds and counters ``[N]``."""
    mixed = _mix(_mix(seed + _signed(_GAMMA)) + counter * _signed(_GAMMA))
    return (((mixed >> (64 - _BITS)) & ((1 << _BITS) - 1)).double() + 0.5) / float(1 << _BITS)


def seed_of(base: int, number: int) -> int:
    """A seed, as a signed 64-bit number, for the ``number``-th request that names none."""
    return int(_mix(_mix(torch.tensor(base)) + torch.tensor(number) * _signed(_GAMMA)))


@dataclass(frozen=True)
class Controls:
    """How to sample ``N`` rows. The flags say whether any row needs that part of the work.

    Attributes:
        temperature: float32 ``[N]``; 1 for greedy rows.
        greedy: bool ``[N]``.
        top_p: float32 ``[N]``; 1 is off.
        top_k: int64 ``[N]``; the vocabulary's size or more is off.
        seed, counter: int64 ``[N]``, see :func:`uniform`.
        filtered: numbers of the rows that top-k or top-p apply to, int64 ``[F]``, or None.
        banned: tokens that must not be drawn, int64 ``[N, S]``, or None; -1 stands for none.
    """

    temperature: Tensor
    greedy: Tensor
    top_p: Tensor
    top_k: Tensor
    seed: Tensor
    counter: Tensor
    filtered: Tensor | None
    banned: Tensor | None
    any_temperature: bool
    any_greedy: bool
    all_greedy: bool


def sample(logits: Tensor, controls: Controls) -> tuple[Tensor, Tensor]:
    """Tokens int64 ``[N]`` and their log-probs float32 ``[N]`` from logits ``[N, V]``.

    Log-probs are those of the whole distribution under the temperature, before top-k, top-p and bans, so that they equal
    what a trainer computes from the same logits; a greedy row's are those at temperature 1. Top-k comes before top-p, and
    top-p counts within what top-k left. A row whose logits are not finite gets a log-prob that is not finite.
    """
    logits = logits.float()
    if controls.any_temperature:
        logits = logits / controls.temperature[:, None]
    log_probs = torch.log_softmax(logits, dim=-1)
    allowed = log_probs if controls.banned is None else _without(log_probs, controls.banned)
    if controls.all_greedy:
        tokens = allowed.argmax(-1)
    else:
        draws = uniform(controls.seed, controls.counter)
        tokens = _pick(allowed.exp(), draws)
        if controls.filtered is not None:
            # Only these rows: a neighbour's filter must not change the order in which a row's tokens are laid out.
            rows = controls.filtered
            tokens[rows] = _filtered(allowed[rows], draws[rows], controls.top_k[rows], controls.top_p[rows])
        if controls.any_greedy:
            tokens = torch.where(controls.greedy, allowed.argmax(-1), tokens)
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0]


def _pick(probs: Tensor, draws: Tensor) -> Tensor:
    """The first column at which the cumulative sum of ``probs [N, V]`` exceeds the draw's share of the total."""
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    target = (draws * cumulative[:, -1])[:, None]
    # A draw is below 1 by more than rounding, so a column with a probability above 0 is found; the clamp serves NaN rows.
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=probs.shape[1] - 1)


def _filtered(log_probs: Tensor, draws: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    probs, order = log_probs.exp().sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(probs.shape[1], device=probs.device)
    probs = torch.where(ranks < top_k[:, None], probs, 0.0)
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    before = (cumulative - probs) / cumulative[:, -1:]
    # The token that crosses the threshold stays, so one token always does.
    keep = (top_p[:, None] >= 1.0) | (before < top_p[:, None])
    return order.gather(1, _pick(torch.where(keep, probs, 0.0), draws)[:, None])[:, 0]


def _without(log_probs: Tensor, banned: Tensor) -> Tensor:
    columns = banned.clamp(min=0)
    values = torch.where(banned >= 0, float("-inf"), log_probs.gather(1, columns))
    # The row's own -1 entries would write the old value over a ban of token 0; amin keeps the ban.
    return log_probs.scatter_reduce(1, columns, values, "amin")
