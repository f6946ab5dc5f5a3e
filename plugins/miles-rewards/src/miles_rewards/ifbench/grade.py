"""Whether one response follows its instructions. Runs in a grading process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from miles_rewards.ifbench.families import (
    change_case,
    combination,
    count,
    custom,
    detectable_content,
    detectable_format,
    keywords,
    language,
    length_constraints,
    punctuation,
    ratio,
    repeat,
    sentence,
    startend,
    words,
)
from miles_rewards.ifbench.families import format as layout
from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ungradable import Ungradable

_FAMILIES = (
    change_case,
    combination,
    count,
    custom,
    detectable_content,
    detectable_format,
    keywords,
    language,
    layout,
    length_constraints,
    punctuation,
    ratio,
    repeat,
    sentence,
    startend,
    words,
)
INSTRUCTIONS: dict[str, Check] = {
    f"{family.__name__.rpartition('.')[2]}:{name}": check for family in _FAMILIES for name, check in family.TABLE.items()
}
"""Every instruction by its id."""


def grade(response: str, instructions: str, loose: str) -> float:
    """1.0 when every instruction is followed, else 0.0; for :class:`~miles_rewards.pool.GradingPool`.

    Args:
        response: the text without reasoning.
        instructions: JSON of ``[[id, arguments], ...]``.
        loose: ``loose`` or nothing.

    Raises:
        Ungradable: an instruction is unknown, or lacks an argument.
    """
    return float(all(followed(response, json.loads(instructions), loose == "loose")))


def followed(response: str, instructions: Sequence[tuple[str, Mapping[str, Any]]], loose: bool = False) -> list[bool]:
    """Whether each instruction is followed. A blank response follows none.

    Raises:
        Ungradable: an instruction is unknown, or lacks an argument.
    """
    texts = [text for text in (variants(response) if loose else [response]) if text.strip()]
    verdicts = []
    for name, arguments in instructions:
        check = INSTRUCTIONS.get(name)
        if check is None:
            raise Ungradable(f"there is no instruction {name!r}")
        given = Arguments(arguments)
        verdicts.append(any(check(text, given) for text in texts))
    return verdicts


def variants(response: str) -> list[str]:
    """The response, and what it is without its first line, its last line, both; each with and without asterisks."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [text for whole in (response, *cut) for text in (whole, whole.replace("*", ""))]
