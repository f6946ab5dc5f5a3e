"""``punctuation:`` of IFEval."""

from __future__ import annotations

from miles_rewards.ifbench.instruction import Arguments, Check


def no_comma(response: str, given: Arguments) -> bool:
    """No comma."""
    del given
    return "," not in response


TABLE: dict[str, Check] = {"no_comma": no_comma}
