"""Comparing an answer with a label: by spelling, as numbers, part by part, and only then by algebra."""

from __future__ import annotations

import re
from collections.abc import Callable

from miles_rewards.mathematics.number import Number, check_size, parse_number
from miles_rewards.mathematics.text import assignment, check_text, clean, key, split
from miles_rewards.ungradable import Ungradable

Algebra = Callable[[str, str], bool | None]
"""Whether two cleaned expressions are equal; None when it cannot tell here."""

_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_VARIABLE = re.compile(r"[A-Za-df-hj-z]")
_SHAPE = re.compile(r"\\(?:cup|cap|begin|infty|emptyset)(?![A-Za-z])")
_BASED = re.compile(r"(-?\d[0-9a-z.]*)_\{?(\d+)\}?")
_SIGNS = re.compile(r"\\[pm][mp](?![A-Za-z])")


def unknown(answer: str, label: str) -> None:
    """The algebra that knows nothing: what comparing costs no algebra is decided, the rest is None."""
    del answer, label


def equal(answer: str, label: str, algebra: Algebra = unknown) -> bool | None:
    """Whether an answer equals a label.

    Args:
        answer, label: as written, boxes removed.
        algebra: decides what spelling and numbers do not.

    Raises:
        Ungradable: one of the two is not fit to be graded.
    """
    check_text(answer)
    check_text(label)
    answer, label = clean(answer), clean(label)
    if not key(label):
        raise Ungradable("the label is empty")
    if not key(answer):
        return False
    return _equal(answer, label, algebra)


def _equal(answer: str, label: str, algebra: Algebra) -> bool | None:
    (variable, right), (label_variable, label_right) = assignment(answer), assignment(label)
    if variable == label_variable or not (variable and label_variable):
        # x = 5 answers 5, and not y = 5.
        answer, label = right, label_right
    if key(answer) == key(label):
        return True
    check_size(answer)
    check_size(label)
    verdict = _numbers(answer, label)
    if verdict is None:
        verdict = _bases(answer, label)
    if verdict is not None:
        return verdict

    if _SIGNS.search(answer) or _SIGNS.search(label):
        ours, theirs = _both_signs(answer), _both_signs(label)
        return _unordered(ours, theirs, algebra) if len(ours) == len(theirs) else False
    opened, parts, closed = split(answer)
    label_opened, label_parts, label_closed = split(label)
    if len(parts) != len(label_parts):
        return False
    if len(parts) > 1:
        if (opened, closed) != (label_opened, label_closed):
            return False
        return _unordered(parts, label_parts, algebra) if opened == "\\{" else _ordered(parts, label_parts, algebra)
    if (opened, label_opened) != ("", "") or (parts[0], label_parts[0]) != (answer, label):
        return _equal(parts[0], label_parts[0], algebra)

    if _WORD.fullmatch(key(answer)) or _WORD.fullmatch(key(label)):
        return False
    value = _number(label)
    if value is not None and (value.value.denominator == 1 or _no_number(answer)):
        # 6 \times 7 is not yet an answer to a question whose answer is 42.
        return False
    if _number(answer) is not None and _no_number(label):
        return False
    return algebra(answer, label)


def _numbers(answer: str, label: str) -> bool | None:
    """Verdict on two plain numbers; None when one of them is not."""
    ours, theirs = _number(answer), _number(label)
    if ours is None or theirs is None:
        return None
    if not ours.reduced and ("/" in label or "\\frac" in label or theirs.value.denominator == 1):
        # The form was asked for: 2/4 is not an answer where 1/2 is expected.
        return False
    return ours.value == theirs.value


def _no_number(text: str) -> bool:
    """Whether an expression has variables, or is a set or a matrix: it is not equal to a number, or still to be simplified."""
    return bool(_SHAPE.search(text) or _VARIABLE.search(_COMMAND.sub(" ", text)))


def _bases(answer: str, label: str) -> bool | None:
    """Verdict when a number with its base is among them, ``101_2``; None otherwise. The base is part of such an answer."""
    ours, theirs = _BASED.fullmatch(key(answer)), _BASED.fullmatch(key(label))
    if ours is None and theirs is None:
        return None
    return ours is not None and theirs is not None and ours.groups() == theirs.groups()


def _both_signs(text: str) -> list[str]:
    """The parts of an answer, each with a plus-minus sign as the two that it stands for."""
    found = []
    opened, parts, _ = split(text)
    for part in parts if not opened else [text]:
        if _SIGNS.search(part):
            found += [_signed(part, "+", "-"), _signed(part, "-", "+")]
        else:
            found.append(part)
    return found


def _signed(text: str, pm: str, mp: str) -> str:
    signed = _SIGNS.sub(lambda m: pm if m.group() == "\\pm" else mp, text).strip()
    return signed[1:].strip() if signed.startswith("+") else signed


def _number(text: str) -> Number | None:
    """A number; ``1, 234`` is two of them."""
    return None if ", " in text else parse_number(key(text))


def _ordered(parts: list[str], label_parts: list[str], algebra: Algebra) -> bool | None:
    verdicts = [_equal(a, b, algebra) for a, b in zip(parts, label_parts, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def _unordered(parts: list[str], label_parts: list[str], algebra: Algebra) -> bool | None:
    """Parts of sets, matched one to one."""
    left, undecided = list(label_parts), False
    for part in parts:
        verdicts = [_equal(part, other, algebra) for other in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True
