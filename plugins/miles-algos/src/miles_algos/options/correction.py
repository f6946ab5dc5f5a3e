"""Options of corrections for samples of another policy than the one that is trained."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option

LEVELS = ("token", "sequence", "geometric")


@dataclass(frozen=True)
class TisOptions:
    """Truncated importance sampling"""

    use_tis: bool = option(
        False, flag="--use-tis", help="Weight the policy gradient by the ratio of the trainer's to the engine's probabilities."
    )
    tis_clip: float = option(2.0, flag="--tis-clip", help="Largest weight.")
    tis_clip_low: float = option(0.0, flag="--tis-clip-low", help="Smallest weight.")
    tis_level: str = option(
        "token",
        flag="--tis-level",
        choices=LEVELS,
        help="A weight for each token, for each response (the product over its tokens), or their geometric mean.",
    )
    tis_mode: str = option(
        "truncate", flag="--tis-mode", choices=("truncate", "mask"), help="Weights beyond the bounds are cut to them, or become 0."
    )
    custom_tis_function_path: str | None = option(
        None,
        flag="--custom-tis-function-path",
        metavar="PATH",
        signature="tis",
        help="Function that corrects the policy-gradient terms, in place of --use-tis's own. It needs no --use-tis.",
    )


@dataclass(frozen=True)
class RejectionOptions:
    """Rejection of mismatched tokens"""

    use_rs: bool = option(False, flag="--use-rs", help="Leave tokens or responses out that engine and trainer disagree about.")
    rs_level: str = option("token", flag="--rs-level", choices=LEVELS, help="What is compared with the bounds, as for --tis-level.")
    rs_upper_bound: float = option(2.0, flag="--rs-upper-bound", help="Largest ratio that is kept.")
    rs_lower_bound: float | None = option(
        None, flag="--rs-lower-bound", help="Smallest ratio that is kept; 1 / --rs-upper-bound when not given."
    )
    rs_veto_threshold: float | None = option(
        None, flag="--rs-veto-threshold", help="Leave a whole response out when one of its tokens has a ratio below this."
    )


@dataclass(frozen=True)
class OpsmOptions:
    """Off-policy sequence masking"""

    use_opsm: bool = option(
        False, flag="--use-opsm", help="Leave responses of negative advantage out that the policy has moved away from."
    )
    opsm_delta: float = option(1e-4, flag="--opsm-delta", help="Mean log-ratio of old to current policy that is too far.")
