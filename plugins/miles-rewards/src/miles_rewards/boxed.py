r"""The prefix ``boxed_``: a reward of the content of the response's last ``\boxed{...}`` alone, and of nothing when there is none.

Examples: ``boxed_f1`` of ``so \boxed{the cat}`` for ``cat`` is 1.0; ``boxed_gpqa`` of ``Option A? \boxed{C}`` for ``C`` is 1.0.

Deliberate differences: ``boxed_math`` and ``boxed_deepscaler`` are ``math`` and ``deepscaler``, which look into the box by
themselves, and ``boxed_dapo`` needs no ``Answer:`` in the box. Taken to the letter none of them could ever be right.
"""

from __future__ import annotations

import dataclasses

from miles_core.options import Config
from miles_core.samples import Sample, Score
from miles_rewards import chance, exact, f1, gpqa
from miles_rewards.mathematics.boxed import last_boxed
from miles_rewards.rule import Question, Rule, RuleReward


def boxed(rule: Rule) -> Rule:
    """``rule`` of the last box."""

    def of_box(sample: Sample) -> Score | Question:
        return rule(dataclasses.replace(sample, response=last_boxed(sample.response) or ""))

    return of_box


def create_deterministic(config: Config) -> RuleReward:
    """Reward ``boxed_deterministic_random``."""
    del config
    return RuleReward(boxed(chance.of_content))


def create_exact(config: Config) -> RuleReward:
    """Reward ``boxed_exact``."""
    del config
    return RuleReward(boxed(exact.grade))


def create_f1(config: Config) -> RuleReward:
    """Reward ``boxed_f1``."""
    del config
    return RuleReward(boxed(f1.grade))


def create_gpqa(config: Config) -> RuleReward:
    """Reward ``boxed_gpqa``."""
    del config
    return RuleReward(boxed(gpqa.grade))
