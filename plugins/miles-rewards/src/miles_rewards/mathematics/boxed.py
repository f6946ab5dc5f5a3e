"""Where the answer is: the last box of a response, and the forms that labels come in."""

from __future__ import annotations

import re

from miles_rewards.ungradable import Ungradable

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_GSM8K = re.compile(r"####[ \t]*([^\n]*)")


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}``, braces matched; None when there is none or it is not closed.

    ``\boxed 42`` and ``\fbox{42}`` are no boxes. Of nested boxes the innermost counts.
    """
    start = text.rfind("\\boxed")
    opened = _BOX.match(text, start) if start >= 0 else None
    if opened is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, opened.end()):
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
            if depth == 0:
                return text[opened.end() : brace.start()]
    return None


def label_answer(label: object) -> str:
    r"""The answer that a label states: the number or text itself, its last box, or what follows GSM8K's ``####``.

    Raises:
        Ungradable: there is no label, or it is not a number or text, or it states no answer.
    """
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise Ungradable(f"the label is {'missing' if label is None else f'a {type(label).__name__}'}; text or a number is needed")
    if isinstance(label, int) and label.bit_length() > 4096:
        raise Ungradable("the label is an integer of more than 4096 bits")
    text = str(label)
    if "\\boxed" in text:
        content = last_boxed(text)
        if content is None:
            raise Ungradable("the label's box is not closed")
        text = content
    elif "####" in text:
        text = _GSM8K.findall(text)[-1]
    if not text.strip():
        raise Ungradable("the label is empty")
    return text
