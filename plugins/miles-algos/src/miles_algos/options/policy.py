"""Options of the policy losses. A loss carries those groups that it reads."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class ClipOptions:
    """Clipped ratio"""

    eps_clip: float = option(0.2, flag="--eps-clip", help="The probability ratio is clipped to at least 1 minus this.")
    eps_clip_high: float | None = option(
        None, flag="--eps-clip-high", help="The probability ratio is clipped to at most 1 plus this; --eps-clip when not given."
    )


@dataclass(frozen=True)
class DualClipOptions:
    """Dual clip"""

    eps_clip_c: float | None = option(
        None, flag="--eps-clip-c", help="Dual clip: tokens of negative advantage lose at most this times its size. More than 1."
    )


@dataclass(frozen=True)
class SoftGateOptions:
    """Soft gate of SAPO"""

    sapo_tau_pos: float = option(1.0, flag="--sapo-tau-pos", help="Steepness of the gate where the advantage is positive.")
    sapo_tau_neg: float = option(1.05, flag="--sapo-tau-neg", help="Steepness of the gate elsewhere; more forgets faster.")


@dataclass(frozen=True)
class EntropyOptions:
    """Entropy bonus"""

    entropy_coef: float = option(0.0, flag="--entropy-coef", help="Weight of the entropy, which is subtracted from the loss.")


@dataclass(frozen=True)
class ReducerOptions:
    """Reduction of the policy-gradient term"""

    custom_pg_loss_reducer_function_path: str | None = option(
        None,
        flag="--custom-pg-loss-reducer-function-path",
        metavar="PATH",
        signature="pg_loss_reducer",
        help="Function that says how much each token's policy-gradient term counts, in place of the mean over a sample.",
    )


@dataclass(frozen=True)
class CustomLossOptions:
    """Custom loss"""

    custom_loss_function_path: str | None = option(
        None, flag="--custom-loss-function-path", metavar="PATH", signature="loss", help="Function that is the loss."
    )
