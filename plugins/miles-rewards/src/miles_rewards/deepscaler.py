r"""Reward ``deepscaler``: reward ``math``, of what a delimiter separates from the reasoning.

Source: the math reward of DeepScaleR (Luo et al. 2025).

Contract: the answer follows the last ``</think>``; without one, the first ``###Response`` and goes to the next. A response without
either is 0.0, however right: the delimiter is what this reward teaches. There the last box is compared as ``math`` does.

Examples: ``reasoning</think>\boxed{42}`` for ``42`` is 1.0; ``\boxed{42}`` is 0.0; ``\boxed{42}</think>done`` is 0.0.

Assumptions: the chat template asks for reasoning. A model that does not reason scores 0.0 always: use ``math`` for it.

Deliberate difference: a missing or empty label is ``Invalid``, not 0 and no crash.
"""

from __future__ import annotations

from miles_core.options import Config
from miles_core.samples import Sample, Scored
from miles_rewards.mathematics.boxed import label_answer, last_boxed
from miles_rewards.mathematics.comparison import Comparison
from miles_rewards.rule import Question, RuleReward

THINK = "</think>"
RESPONSE = "###Response"


def create(config: Config) -> RuleReward:
    """The reward. Worker processes start with the first answer that needs algebra."""
    return RuleReward(find, Comparison(config))


def find(sample: Sample) -> Scored | Question:
    """The boxed answer after the delimiter, and the label's.

    Raises:
        Ungradable: there is no usable label.
    """
    stated = label_answer(sample.label)
    text = delimited(sample.response)
    if text is None:
        return Scored(0.0, "no delimiter")
    answer = last_boxed(text)
    return Scored(0.0, "no box after the delimiter") if answer is None else Question(answer, stated)


def delimited(response: str) -> str | None:
    """The part of a response that counts; None without a delimiter."""
    if THINK in response:
        return response.rpartition(THINK)[2]
    if RESPONSE in response:
        return response.split(RESPONSE, 2)[1]
    return None
