"""Reward ``exact``: 1.0 when the whole response is the label.

The response must have ended by itself (end-of-sequence or a stop string), and its text without special tokens and outer white
space must equal the label's. Everything else is 0.0; a sample without a label is ``Invalid``.

Examples: ``7<|im_end|>`` for ``7`` is 1.0; ``It is 7`` is 0.0; so is ``7`` cut off at the length limit.

Assumptions: special tokens at the ends look like ``<|im_end|>``, ``</s>``, ``<eos>``, ``<pad>`` or ``<end_of_turn>``.
"""

from __future__ import annotations

import re

from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored, Status
from miles_rewards.rule import RuleReward

_SPECIAL = r"<\|[^|<>\s]{1,64}\|>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|<｜[^｜<>]{1,64}｜>"
_FIRST = re.compile(_SPECIAL)
_LAST = re.compile(rf"(?:{_SPECIAL})$")
_LONGEST = 68
"""Characters of the longest special token; the end of a response is searched no further back."""


def create(config: Config) -> RuleReward:
    """The reward."""
    del config
    return RuleReward(grade)


def grade(sample: Sample) -> Score:
    """Grade one sample."""
    if sample.label is None or not isinstance(sample.label, str | int | float):
        return Invalid(f"the label is {'missing' if sample.label is None else f'a {type(sample.label).__name__}'}")
    if sample.status is not Status.COMPLETED:
        return Scored(0.0, f"the response is {sample.status}")
    return Scored(float(strip(sample.response) == str(sample.label).strip()))


def strip(text: str) -> str:
    """``text`` without special tokens and white space at its ends."""
    text = text.strip()
    while special := _FIRST.match(text):
        text = text[special.end() :].lstrip()
    while special := _LAST.search(text[-_LONGEST:]):
        text = text[: len(text) - len(special.group())].rstrip()
    return text
