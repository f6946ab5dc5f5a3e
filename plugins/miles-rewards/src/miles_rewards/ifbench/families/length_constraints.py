"""``length_constraints:`` of IFEval."""

from __future__ import annotations

import re

from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.text import count_words, sentences

_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_FIRST = re.compile(r"[^.,?!'\"]*")


def number_sentences(response: str, given: Arguments) -> bool:
    """Less than, or at least, so many sentences."""
    return given.compared(len(sentences(response)), "num_sentences", "relation")


def number_words(response: str, given: Arguments) -> bool:
    """Less than, or at least, so many words."""
    return given.compared(count_words(response), "num_words", "relation")


def number_paragraphs(response: str, given: Arguments) -> bool:
    """So many paragraphs between dividers ``***``; one at the start or end of the response separates nothing."""
    paragraphs = [bool(part.strip()) for part in _DIVIDER.split(response)]
    return all(paragraphs[1:-1]) and sum(paragraphs) == given.integer("num_paragraphs")


def nth_paragraph_first_word(response: str, given: Arguments) -> bool:
    """So many paragraphs between blank lines, of which the nth begins with the word."""
    paragraphs = response.split("\n\n")
    nth, count = given.integer("nth_paragraph"), sum(bool(part.strip()) for part in paragraphs)
    if count != given.integer("num_paragraphs") or not 1 <= nth <= count or not paragraphs[nth - 1].strip():
        return False
    word = _FIRST.match(paragraphs[nth - 1].split()[0].lstrip("'\"*_"))
    return word is not None and word[0].lower().rstrip("*_:;") == given.text("first_word").lower()


TABLE: dict[str, Check] = {
    "nth_paragraph_first_word": nth_paragraph_first_word,
    "number_paragraphs": number_paragraphs,
    "number_sentences": number_sentences,
    "number_words": number_words,
}
