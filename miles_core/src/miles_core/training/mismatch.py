"""How far the engine's log-probs are from the trainer's, for the same tokens and supposedly the same weights.

With w the weight of a token or of a whole response, exp(train - rollout), sampled from the engine's distribution::

    kl          mean of rollout - train                    k1 estimate of KL(engine || trainer)
    k3_kl       mean of w - 1 - log w                      k3 estimate of the same, never negative
    chi2_token  mean of w^2 - 1                            over tokens
    chi2_seq    mean of w^2 - 1                            over responses, w the product over their tokens
    ess_ratio   (sum w)^2 / (M sum w^2)                    effective sample size of a response of M tokens, as a share
    *_ppl       exp(-mean log-prob) of a response          perplexities, their ratio, and the differences of their logarithms

Sources: Schulman 2020, http://joschu.net/blog/kl-approx.html; Yao et al. 2025, Your Efficient RL Framework Secretly Brings You
Off-Policy RL Training; Kong 1992 for the effective sample size. Exponents are clamped to +-20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from miles_core.training.ragged import masked_sum, sample_sum

_BOUND = 20.0
_PER_TOKEN = ("abs", "kl", "k3_kl", "chi2_token")
_PER_SAMPLE = ("training_ppl", "rollout_ppl", "log_ppl_diff", "log_ppl_abs_diff", "ppl_ratio", "chi2_seq", "ess_ratio")
NAMES = (*_PER_TOKEN, *_PER_SAMPLE, "tokens", "samples")
"""The sums that :func:`sums` gives."""


def sums(train: torch.Tensor, rollout: torch.Tensor, compared: torch.Tensor, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Sums over one micro-batch, float64 scalars, by :data:`NAMES`; ``largest`` besides, which is a maximum and -1 of nothing.

    Args:
        train, rollout: log-probs, ``[N]``; whatever they hold where ``compared`` is 0.
        compared: 1 where the token has both and counts, ``[N]``.
        lengths: response tokens of each sample.
    """
    used = compared != 0
    wide = torch.float64 if train.device.type == "cpu" else torch.float32
    train, rollout = (torch.where(used, values, 0).to(wide) for values in (train, rollout))
    mask = compared.to(wide)
    log_weight = train - rollout
    weight = log_weight.clamp(-_BOUND, _BOUND).exp()
    counts = sample_sum(mask, lengths)
    several = counts.clamp(min=1)
    log_ppl_train, log_ppl_rollout = (-masked_sum(values, mask, lengths) / several for values in (train, rollout))
    difference = log_ppl_train - log_ppl_rollout
    whole = masked_sum(log_weight, mask, lengths).clamp(-_BOUND, _BOUND).exp()
    square = masked_sum(weight.square(), mask, lengths)
    per_token = {
        "abs": log_weight.abs(),
        "kl": -log_weight,
        "k3_kl": weight - 1 - log_weight.clamp(-_BOUND, _BOUND),
        "chi2_token": weight.square() - 1,
    }
    per_sample = {
        "training_ppl": log_ppl_train.clamp(max=_BOUND).exp(),
        "rollout_ppl": log_ppl_rollout.clamp(max=_BOUND).exp(),
        "log_ppl_diff": difference,
        "log_ppl_abs_diff": difference.abs(),
        "ppl_ratio": difference.clamp(-_BOUND, _BOUND).exp(),
        "chi2_seq": whole.square() - 1,
        "ess_ratio": masked_sum(weight, mask, lengths).square() / (several * square.clamp(min=torch.finfo(wide).tiny)),
    }
    present = (counts > 0).to(wide)
    found = {name: (values * mask).sum() for name, values in per_token.items()}
    found |= {name: (values * present).sum() for name, values in per_sample.items()}
    found |= {"tokens": mask.sum(), "samples": present.sum()}
    found["largest"] = torch.where(used, log_weight.abs(), -1).max() if used.numel() else torch.tensor(-1.0, device=train.device)
    return {name: value.to(torch.float64) for name, value in found.items()}


def added(one: Mapping[str, torch.Tensor] | None, other: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sums of two micro-batches together."""
    if one is None:
        return dict(other)
    return {name: torch.maximum(one[name], other[name]) if name == "largest" else one[name] + other[name] for name in other}


def metrics(totals: Mapping[str, float], largest: float) -> dict[str, float]:
    """``train/...`` of the sums over all ranks; nothing when no token was compared."""
    tokens, samples = totals["tokens"], totals["samples"]
    if not tokens:
        return {}
    found = {"train/train_rollout_logprob_abs_diff": totals["abs"] / tokens, "train/train_rollout_logprob_abs_diff_max": largest}
    found |= {f"train/mismatch_{name}": totals[name] / tokens for name in _PER_TOKEN if name != "abs"}
    return found | {f"train/mismatch_{name}": totals[name] / samples for name in _PER_SAMPLE}
