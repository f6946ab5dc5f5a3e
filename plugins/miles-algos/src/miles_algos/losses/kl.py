"""Per-token estimators of KL(policy || reference) from samples of the policy.

Source: Schulman 2020, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html. With d = log pi - log pi_ref::

    k1          d                       unbiased, high variance; as a loss its gradient is 0 in expectation on policy
    k2          d^2 / 2                 biased, low variance; as a loss its gradient is that of the KL
    k3          exp(-d) - 1 + d         unbiased, low variance, never negative
    low_var_kl  k3, clamped to [-10, 10]

The weight pi / pi_old (``--use-unbiased-kl``; DeepSeek-V3.2, arXiv:2512.02556, section 3.1) carries gradient and multiplies
before the clamp of low_var_kl.

Assumptions: tokens were sampled from pi_old. Omissions: no full-vocabulary KL. A constant is not a gradient: where low_var_kl
or an exponent is clamped, the gradient is 0.
"""

from __future__ import annotations

import torch

from miles_algos.losses.log_ratio import log_ratio, safe_exp

LOW_VARIANCE_BOUND = 10.0


def kl_terms(
    kind: str, log_probs: torch.Tensor, ref_log_probs: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """KL estimate of each token, ``[N]``; 0 where masked.

    Args:
        kind: ``k1``, ``k2``, ``k3`` or ``low_var_kl``.
        log_probs, ref_log_probs: of policy and reference, ``[N]``.
        mask: 1 where the token is trained on, ``[N]``.
        weight: importance weight, ``[N]``.

    Raises:
        ValueError: unknown ``kind``.
    """
    d = log_ratio(log_probs, ref_log_probs, mask)
    if kind == "k1":
        kl = d
    elif kind == "k2":
        kl = d.square() / 2
    elif kind in ("k3", "low_var_kl"):
        kl = safe_exp(-d) - 1 + d
    else:
        raise ValueError(f"unknown KL estimator {kind!r}")
    if weight is not None:
        kl = weight * kl
    return kl.clamp(-LOW_VARIANCE_BOUND, LOW_VARIANCE_BOUND) if kind == "low_var_kl" else kl
