r"""Reward ``dapo``: +1.0 when the last line ``Answer: ...`` states the label, -1.0 when it does not.

Source: the grader of DAPO (Yu et al. 2025, arXiv:2503.14476, section 4.1), whose prompts ask for such a last line, with the
normalisation of Lewkowycz et al. 2022 (Minerva, arXiv:2206.14858).

Contract: of the last 300 characters the last ``Answer:`` counts, to the end of its line and behind its last ``=`` outside of
brackets. Compared as ``math`` does. The score is a dict: ``score`` (+1.0 or -1.0), ``acc`` (1.0 or 0.0) and ``pred`` (the answer
found, or ``[INVALID]``), so a run needs ``--reward-key score`` or ``acc``. A missing or unreadable label is ``Invalid``.

Examples: ``Answer: $42$`` for ``42`` is +1.0; ``\boxed{42}`` is -1.0: there is no such line.

Deliberate differences: the comparison is that of ``math``, so that ``42.0`` and ``42.`` are 42 and labels need not be integers;
bold type (``**Answer:** 42``) does not hide the line. The type ``boxed_dapo`` takes the last box in place of the line.
"""

from __future__ import annotations

import re

from miles_core.options import Config
from miles_core.samples import Sample, Scored
from miles_rewards.mathematics.boxed import label_answer, last_boxed
from miles_rewards.mathematics.comparison import Comparison
from miles_rewards.rule import Question, RuleReward

TAIL = 300
NO_ANSWER = "[INVALID]"
_LINE = re.compile(r"answer\*{0,2}\s{0,8}:([^\n]*)", re.IGNORECASE)
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")


def create(config: Config) -> RuleReward:
    """The reward. Worker processes start with the first answer that needs algebra."""
    return RuleReward(find, Comparison(config))


def create_boxed(config: Config) -> RuleReward:
    """The reward that takes the last box in place of the line."""
    return RuleReward(find_boxed, Comparison(config))


def find(sample: Sample) -> Scored | Question:
    """The answer of the last line that states one, and the label's.

    Raises:
        Ungradable: there is no usable label.
    """
    stated = label_answer(sample.label)
    lines = _LINE.findall(sample.response[-TAIL:])
    return _question(lines[-1] if lines else None, stated)


def find_boxed(sample: Sample) -> Scored | Question:
    """The answer of the last box, whether or not it says ``Answer:``, and the label's.

    Raises:
        Ungradable: there is no usable label.
    """
    stated = label_answer(sample.label)
    content = last_boxed(sample.response)
    lines = _LINE.findall(content or "")
    return _question(lines[-1] if lines else content, stated)


def _question(line: str | None, stated: str) -> Scored | Question:
    if line is None:
        return Scored(_values(0.0, NO_ANSWER), "no line 'Answer:'")
    answer = line.strip("* \t\r")
    if "\\boxed" in answer:
        answer = last_boxed(answer) or answer
    if not _EQUALS.search(stated):
        answer = _last_side(answer)
    return Question(answer, stated, lambda correct: Scored(_values(correct, answer)))


def _last_side(answer: str) -> str:
    """What follows the last equals sign outside of brackets."""
    signs, depth = {equals.start() for equals in _EQUALS.finditer(answer)}, 0
    for place in range(len(answer) - 1, -1, -1):
        depth += (answer[place] in ")]}") - (answer[place] in "([{")
        if depth == 0 and place in signs:
            return answer[place + 1 :].strip()
    return answer


def _values(correct: float, answer: str) -> dict[str, object]:
    return {"score": 2 * correct - 1, "acc": correct, "pred": answer}
