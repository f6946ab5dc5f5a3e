"""Reward ``f1``: how many words response and label share, from 0.0 to 1.0.

Source: the F1 of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250), with HotpotQA's rule for ``yes``, ``no`` and ``noanswer``.

Formula: ``2 p r / (p + r)``, with p the share of the response's words that are in the label and r the share of the label's words
that are in the response, each word as often as it occurs. Text is lower-cased; ASCII punctuation and the words a, an, the go.
``yes``, ``no`` and ``noanswer`` must be the whole of both. Of a label that is a list of texts the best counts.

Examples: ``The cat sat`` for ``a cat sat`` is 1.0; ``cat dog`` for ``cat`` is 2/3; ``yes`` for ``no`` is 0.0.

Deliberate differences: reasoning up to the last ``</think>`` is no part of the response; a missing label is ``Invalid``.
"""

from __future__ import annotations

import string
from collections import Counter

from miles_core.options import Config
from miles_core.samples import Sample, Scored
from miles_rewards.rule import RuleReward
from miles_rewards.ungradable import Ungradable

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = frozenset({"a", "an", "the"})
_VERDICTS = (["yes"], ["no"], ["noanswer"])


def create(config: Config) -> RuleReward:
    """The reward."""
    del config
    return RuleReward(grade)


def grade(sample: Sample) -> Scored:
    """The F1 of one sample.

    Raises:
        Ungradable: the label is no text, number or list of them.
    """
    labels = sample.label if isinstance(sample.label, list) else [sample.label]
    if not labels or any(isinstance(label, bool) or not isinstance(label, str | int | float) for label in labels):
        raise Ungradable(f"the label is {'missing' if sample.label is None else f'a {type(sample.label).__name__}'}")
    response = words(sample.response.rpartition("</think>")[2])
    return Scored(max(f1(response, words(str(label))) for label in labels))


def words(text: str) -> list[str]:
    """The words that count."""
    return [word for word in text.lower().translate(_NO_PUNCTUATION).split() if word not in _ARTICLES]


def f1(response: list[str], label: list[str]) -> float:
    """F1 of two lists of words; 0.0 when they share none."""
    if response != label and (response in _VERDICTS or label in _VERDICTS):
        return 0.0
    shared = (Counter(response) & Counter(label)).total()
    return 2 * shared / (len(response) + len(label)) if shared else 0.0
