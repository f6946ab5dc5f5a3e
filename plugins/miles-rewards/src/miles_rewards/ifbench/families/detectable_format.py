"""``detectable_format:`` of IFEval."""

from __future__ import annotations

import json
import re

from miles_rewards.ifbench.instruction import Arguments, Check

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_BULLET = re.compile(r"\s*(?:\*(?!\*)|-)")
_SINGLE = re.compile(r"\*[^\n*]*\*")
_DOUBLE = re.compile(r"\*\*[^\n*]*\*\*")
_OPENING = re.compile(r"```(?:json|Json|JSON)?")


def number_bullet_lists(response: str, given: Arguments) -> bool:
    """Exactly so many lines that begin with ``*`` or ``-``."""
    count = sum(1 for line in response.splitlines() if _BULLET.match(line) and line.strip() != "*")
    return count == given.integer("num_bullets")


def constrained_response(response: str, given: Arguments) -> bool:
    """One of the three answers occurs."""
    del given
    return any(answer in response for answer in ANSWERS)


def number_highlighted_sections(response: str, given: Arguments) -> bool:
    """At least so many highlights ``*...*`` or ``**...**`` with something in them."""
    found = sum(1 for part in _SINGLE.findall(response) if part.strip("*").strip())
    found += sum(1 for part in _DOUBLE.findall(response) if part.strip("*").strip())
    return found >= given.integer("num_highlights")


def multiple_sections(response: str, given: Arguments) -> bool:
    """At least so many sections, marked as ``Section 1``."""
    marks = re.findall(rf"{re.escape(given.text('section_spliter'))}\s?\d+", response)
    return len(marks) >= given.integer("num_sections")


def json_format(response: str, given: Arguments) -> bool:
    """The whole response is JSON, which may stand in a code fence."""
    del given
    text = response.strip()
    if opening := _OPENING.match(text):
        text = text[opening.end() :]
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str, given: Arguments) -> bool:
    """A line has a title ``<<...>>``."""
    del given
    for line in response.splitlines():
        begin, end = line.find("<<"), line.rfind(">>")
        if 0 <= begin < end and line[begin:end].strip("<> "):
            return True
    return False


TABLE: dict[str, Check] = {
    "constrained_response": constrained_response,
    "json_format": json_format,
    "multiple_sections": multiple_sections,
    "number_bullet_lists": number_bullet_lists,
    "number_highlighted_sections": number_highlighted_sections,
    "title": title,
}
