"""``detectable_content:`` of IFEval."""

from __future__ import annotations

import re

from miles_rewards.ifbench.instruction import Arguments, Check

_MARKS = {"P.P.S": re.compile(r"p\.\s?p\.\s?s"), "P.S.": re.compile(r"p\.\s?s\.")}


def number_placeholders(response: str, given: Arguments) -> bool:
    """At least so many placeholders ``[...]``, each within a line."""
    count = 0
    for line in response.splitlines():
        place = line.find("[")
        while place >= 0 and (end := line.find("]", place)) >= 0:
            count += 1
            place = line.find("[", end)
    return count >= given.integer("num_placeholders")


def postscript(response: str, given: Arguments) -> bool:
    """There is a postscript with the mark."""
    mark = given.text("postscript_marker")
    pattern = _MARKS.get(mark)
    return pattern.search(response.lower()) is not None if pattern else mark.lower() in response.lower()


TABLE: dict[str, Check] = {"number_placeholders": number_placeholders, "postscript": postscript}
