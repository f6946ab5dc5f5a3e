"""What every algorithm shares."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class AlgorithmOptions:
    """Algorithm"""

    calculate_per_token_loss: bool = option(
        False, flag="--calculate-per-token-loss", help="Average the loss over all tokens of a step, not first within each sample."
    )
    loss_length_divisor: int | None = option(
        None,
        flag="--loss-length-divisor",
        help="Divide each sample's summed loss by this many tokens, not by its own number (Dr. GRPO); 0 takes "
        "--rollout-max-response-len.",
    )
    normalize_advantages: bool = option(
        False, flag="--normalize-advantages", help="Whiten the advantages over all tokens of a rollout, on all ranks."
    )
    disable_compute_advantages_and_returns: bool = option(
        False,
        flag="--disable-compute-advantages-and-returns",
        help="No advantages, and no pass for old or reference log-probs; for losses that need none.",
    )
    use_rollout_logprobs: bool = option(
        False,
        flag="--use-rollout-logprobs",
        help="Take the engine's log-probs for those of the old policy, instead of computing them anew.",
    )
    use_rollout_entropy: bool = option(
        False, flag="--use-rollout-entropy", help="Compute and log the entropy in the passes before training as well."
    )
    keep_old_actor: bool = option(
        False,
        flag="--keep-old-actor",
        help="Keep a copy of the weights that the engines serve, and compute the old policy's log-probs with it.",
    )
    ref_update_interval: int | None = option(
        None,
        flag="--ref-update-interval",
        help="Rollouts between updates of the reference model from the actor; never when not given.",
    )
    reset_optimizer_states: bool = option(
        False, flag="--reset-optimizer-states", help="Start every rollout's training with a fresh optimizer; the schedule goes on."
    )
    ref_load: str | None = option(
        None, flag="--ref-load", metavar="DIR", help="HF directory of the reference model; --hf-checkpoint when not given."
    )
