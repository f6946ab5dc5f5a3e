"""Reward ``format``: 1.0 when a response is one think block and then an answer, else 0.0.

Source: the format reward of DeepSeek-R1 (DeepSeek-AI 2025, arXiv:2501.12948, section 2.2.2).

Contract: ``<think>``, some text, ``</think>``, some text; each tag once, and nothing but white space before the first. With
``--format-think-opened`` the prompt holds the first tag, and the response need not. The label is not read.

Examples: ``<think>2+2</think>4`` is 1.0; ``2+2</think>4`` is 0.0 (1.0 with the option); ``<think>2+2</think>`` is 0.0.

Assumptions: the tags are text, not dropped by ``--rollout-skip-special-tokens``.
"""

from __future__ import annotations

from miles_core.options import Config
from miles_core.samples import Sample, Scored
from miles_rewards.options import FormatOptions
from miles_rewards.rule import RuleReward

OPEN, CLOSE = "<think>", "</think>"


def create(config: Config) -> RuleReward:
    """The reward."""
    opened = config.get(FormatOptions).format_think_opened
    return RuleReward(lambda sample: grade(sample, opened))


def grade(sample: Sample, opened: bool) -> Scored:
    """Grade one sample; ``opened`` says that the prompt holds the first tag."""
    thinking, _, answer = sample.response.partition(CLOSE)
    thinking = thinking.lstrip()
    if thinking.startswith(OPEN):
        thinking = thinking[len(OPEN) :]
    elif not opened:
        return Scored(0.0, f"does not begin with {OPEN}")
    if OPEN in thinking or OPEN in answer or CLOSE in answer:
        return Scored(0.0, "a tag more than once")
    if not thinking.strip() or not answer.strip():
        return Scored(0.0, "no thoughts or no answer")
    return Scored(1.0)
