"""``change_case:`` of IFEval."""

from __future__ import annotations

from miles_rewards.ifbench.families.language import in_language
from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.text import tokens


def capital_word_frequency(response: str, given: Arguments) -> bool:
    """Less than, or at least, so many words in capital letters; a hyphenated one is one."""
    return given.compared(sum(token.isupper() for token in tokens(response)), "capital_frequency", "capital_relation")


def english_capital(response: str, given: Arguments) -> bool:
    """English without a small letter."""
    del given
    return response.isupper() and in_language(response, "en")


def english_lowercase(response: str, given: Arguments) -> bool:
    """English without a capital letter."""
    del given
    return response.islower() and in_language(response, "en")


TABLE: dict[str, Check] = {
    "capital_word_frequency": capital_word_frequency,
    "english_capital": english_capital,
    "english_lowercase": english_lowercase,
}
