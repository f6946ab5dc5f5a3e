"""Rewards."""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.options import option


@dataclass(frozen=True)
class RewardOptions:
    """Rewards"""

    custom_rm_path: str | None = option(
        None,
        flag="--custom-rm-path",
        metavar="PATH",
        signature="reward",
        help="Dotted path of a reward function: async fn(sample) -> number, dict or Score. Takes the place of --rm-type.",
    )
    reward_key: str | None = option(None, flag="--reward-key", help="Key of the number to train on when the reward is a dict.")
    eval_reward_key: str | None = option(
        None, flag="--eval-reward-key", help="Key of the number to report in evaluation; --reward-key when not given."
    )
    group_rm: bool = option(
        False,
        flag="--group-rm",
        help="Call --custom-rm-path once for a prompt's whole group: async fn(samples) -> list of numbers, dicts or Scores.",
    )
    custom_reward_post_process_path: str | None = option(
        None,
        flag="--custom-reward-post-process-path",
        metavar="PATH",
        signature="reward_post_process",
        help="Function that turns rewards into (raw_rewards, rewards) in place of the estimator's normalisation.",
    )
    overlong_buffer_ratio: float = option(
        0.0,
        flag="--overlong-buffer-ratio",
        help="Share of --rollout-max-response-len at its end in which a response loses reward with every token; 0 is off.",
    )
    overlong_penalty_factor: float = option(
        1.0, flag="--overlong-penalty-factor", help="What a response of full length loses, see --overlong-buffer-ratio."
    )
    reward_timeout: float = option(10.0, flag="--reward-timeout", help="Seconds that grading one sample may take.")
    reward_workers: int = option(1, flag="--reward-workers", help="Processes that grade in parallel.")
    reward_failure_limit: float = option(
        0.5, flag="--reward-failure-limit", help="Stop the run when more than this share of a rollout's samples cannot be graded."
    )
