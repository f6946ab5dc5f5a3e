"""``language:`` of IFEval."""

from __future__ import annotations

from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.language import LATIN, detect

FEW = 4
"""Words of which no language can be told; they are then in the right one."""


def in_language(response: str, language: str) -> bool:
    """Whether a text is in a language. One without letters is in any, and a few words in Latin letters in any that has those."""
    found = detect(response)
    if found is None and any(character.isalpha() for character in response):
        return language in LATIN and len(response.split()) <= FEW
    return found in (None, language)


def response_language(response: str, given: Arguments) -> bool:
    """The response is in the language with this code."""
    return in_language(response, given.text("language").lower().partition("-")[0])


TABLE: dict[str, Check] = {"response_language": response_language}
