"""``language:`` of IFEval."""

from __future__ import annotations

from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.language import detect

FEW = 4
"""Words of which no language can be told; they are then in the right one."""


def in_language(response: str, language: str) -> bool:
    """Whether a text is in a language. One without letters is in any."""
    found = detect(response)
    if found is None:
        return not any(character.isalpha() for character in response) or len(response.split()) <= FEW
    return found == language


def response_language(response: str, given: Arguments) -> bool:
    """The response is in the language with this code."""
    return in_language(response, given.text("language").lower().partition("-")[0])


TABLE: dict[str, Check] = {"response_language": response_language}
