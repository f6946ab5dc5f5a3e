"""Reward ``length``: 1.0 for short responses, falling to 0.0 at a limit.

Sources: the length reward of Kimi k1.5 (arXiv:2501.12599, section 2.3.3) falls linearly with the response too, within its group; a
cosine of the length (Yeo et al. 2025, arXiv:2502.03373) differs in the shape alone.

Contract, with n the response's tokens, f = ``--length-free`` and l = ``--length-limit``::

    1 - clip((n - f) / (l - f), 0, 1)

The label is not read. Meant for a sum: ``--rm-type sum --sum-of math length=0.2``.

Examples, with f = 2 and l = 10: 2 tokens are 1.0, 6 are 0.5, 10 and more are 0.0.

Omissions: nothing depends on the siblings, so a group's responses of one length differ by nothing.
"""

from __future__ import annotations

from miles_core.config import RolloutOptions
from miles_core.options import Config
from miles_core.samples import Sample, Scored
from miles_rewards.options import LengthOptions
from miles_rewards.rule import RuleReward


def create(config: Config) -> RuleReward:
    """The reward.

    Raises:
        ValueError: there is no limit, or it is not above what is free.
    """
    options = config.get(LengthOptions)
    free, limit = options.length_free, options.length_limit
    if limit is None:
        limit = config.get(RolloutOptions).rollout_max_response_len
    if limit is None or not 0 <= free < limit:
        raise ValueError(f"length_limit must be above length_free {free}, not {limit}")
    return RuleReward(lambda sample: grade(sample, free, limit))


def grade(sample: Sample, free: int, limit: int) -> Scored:
    """Grade one sample by its number of response tokens."""
    used = (len(sample.response_ids) - free) / (limit - free)
    return Scored(1.0 - min(max(used, 0.0), 1.0))
