"""Options of the policy losses."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class PolicyLossOptions:
    """Policy loss"""

    eps_clip: float = option(0.2, flag="--eps-clip", help="The probability ratio is clipped to at least 1 minus this.")
    eps_clip_high: float | None = option(
        None, flag="--eps-clip-high", help="The probability ratio is clipped to at most 1 plus this; --eps-clip when not given."
    )
    eps_clip_c: float | None = option(
        None, flag="--eps-clip-c", help="Dual clip: tokens of negative advantage lose at most this times its size. More than 1."
    )
    use_kl_loss: bool = option(False, flag="--use-kl-loss", help="Add the KL divergence from the reference model to the loss.")
    kl_loss_coef: float = option(0.0, flag="--kl-loss-coef", help="Weight of the KL divergence in the loss.")
    kl_loss_type: str = option(
        "k1", flag="--kl-loss-type", choices=("k1", "k2", "k3", "low_var_kl"), help="Estimator of the KL divergence in the loss."
    )
    use_unbiased_kl: bool = option(
        False, flag="--use-unbiased-kl", help="Weight the KL estimate by the ratio of current to old policy, with gradient."
    )
    entropy_coef: float = option(0.0, flag="--entropy-coef", help="Weight of the entropy, which is subtracted from the loss.")
