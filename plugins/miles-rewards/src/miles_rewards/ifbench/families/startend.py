"""``startend:`` of IFEval."""

from __future__ import annotations

from miles_rewards.ifbench.instruction import Arguments, Check


def end_checker(response: str, given: Arguments) -> bool:
    """The response ends with the phrase, in any case."""
    return response.strip().strip('"').lower().endswith(given.text("end_phrase").lower())


def quotation(response: str, given: Arguments) -> bool:
    """The response stands in double quotation marks."""
    del given
    text = response.strip()
    return len(text) > 1 and text[0] == '"' == text[-1]


TABLE: dict[str, Check] = {"end_checker": end_checker, "quotation": quotation}
