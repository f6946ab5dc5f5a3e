"""Rewards ``random`` and ``deterministic_random``: 0.0 or 1.0 by chance, to see what a run does without any signal.

Contract: ``random`` depends on ``--rollout-seed`` and the sample's running number, so that a run that resumes draws what it would
have drawn. ``deterministic_random`` depends on tokens and response alone: the first byte of the SHA-256 of the list of token ids
as Python writes it and the response, in UTF-8, modulo 2. Neither reads the label; both are even odds.

Examples: no tokens and the response ``a`` are 1.0, ``b`` 0.0, in every run.

Deliberate difference: ``random`` has no state, so that resuming is exact.
"""

from __future__ import annotations

import hashlib

from miles_core.config import RolloutOptions
from miles_core.options import Config
from miles_core.samples import Sample, Scored
from miles_rewards.rule import RuleReward


def create_random(config: Config) -> RuleReward:
    """Reward ``random``."""
    seed = config.get(RolloutOptions).rollout_seed
    return RuleReward(lambda sample: Scored(_coin(f"{seed} {sample.index}")))


def create_deterministic(config: Config) -> RuleReward:
    """Reward ``deterministic_random``."""
    del config
    return RuleReward(of_content)


def of_content(sample: Sample) -> Scored:
    """The same for the same tokens and response, in any run."""
    return Scored(_coin(f"{sample.tokens}{sample.response}"))


def _coin(text: str) -> float:
    # A lone surrogate has no UTF-8.
    return float(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % 2)
