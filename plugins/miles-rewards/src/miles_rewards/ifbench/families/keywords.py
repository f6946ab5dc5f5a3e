"""``keywords:`` of IFEval."""

from __future__ import annotations

import re

from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ungradable import Ungradable


def existence(response: str, given: Arguments) -> bool:
    """Every keyword occurs, in any case, also inside other words."""
    lower = response.lower()
    return all(word.lower() in lower for word in given.texts("keywords"))


def forbidden_words(response: str, given: Arguments) -> bool:
    """None of the words occurs as a word."""
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE) for word in given.texts("forbidden_words")
    )


def frequency(response: str, given: Arguments) -> bool:
    """The keyword occurs less than, or at least, so many times, also inside other words."""
    return given.compared(response.lower().count(given.text("keyword").lower()), "frequency", "relation")


def letter_frequency(response: str, given: Arguments) -> bool:
    """The letter occurs less than, or at least, so many times, in any case."""
    letter = given.text("letter")
    if len(letter) != 1:
        raise Ungradable(f"the instruction needs letter, a single one, and it is {letter[:20]!r}")
    return given.compared(response.lower().count(letter.lower()), "let_frequency", "let_relation")


TABLE: dict[str, Check] = {
    "existence": existence,
    "forbidden_words": forbidden_words,
    "frequency": frequency,
    "letter_frequency": letter_frequency,
}
