"""Options of KL penalties. Records that take no penalty in the reward do not carry the second."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class KlOptions:
    """KL divergence from the reference"""

    kl_loss_type: str = option(
        "k1",
        flag="--kl-loss-type",
        choices=("k1", "k2", "k3", "low_var_kl"),
        help="Estimator of the KL divergence.",
    )


@dataclass(frozen=True)
class RewardKlOptions:
    """KL divergence in the reward"""

    kl_coef: float = option(
        0.0, flag="--kl-coef", help="Weight of the KL divergence from the reference model, subtracted from every token's reward."
    )


@dataclass(frozen=True)
class KlLossOptions:
    """KL divergence in the loss"""

    use_kl_loss: bool = option(False, flag="--use-kl-loss", help="Add the KL divergence from the reference model to the loss.")
    kl_loss_coef: float = option(0.0, flag="--kl-loss-coef", help="Weight of the KL divergence in the loss.")
    use_unbiased_kl: bool = option(
        False, flag="--use-unbiased-kl", help="Weight the KL estimate by the ratio of current to old policy, with gradient."
    )
