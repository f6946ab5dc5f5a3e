"""Answers that are plain numbers, compared exactly."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from miles_rewards.ungradable import Ungradable

MAX_DIGITS = 10_000

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_PLAIN = re.compile(rf"([-+]?)({_DECIMAL})(?:[eE]([-+]?\d+))?")
_FRACTION = re.compile(r"([-+]?)(?:\\frac\{([-+]?\d+)\}\{([-+]?\d+)\}|([-+]?\d+)/([-+]?\d+))")
_MIXED = re.compile(r"([-+]?)(\d+)\+?\\frac\{(\d+)\}\{(\d+)\}")
_POWER = re.compile(rf"([-+]?)(?:({_DECIMAL})(?:\\times|\\cdot))?({_DECIMAL})\^(?:\{{([-+]?\d+)\}}|(\d))")
_TOWER = re.compile(r"\^\s*(?:\{\s*-?\d+\s*\}|\d+)\s*\^|\^\s*[{(]+\s*-?\d+\s*\^")
_BIG_EXPONENT = re.compile(r"(?:\^|\d[eE])\s*[{(]*\s*[-+]?\d{5,}")
_BIG_FACTORIAL = re.compile(r"(?:\d{5,}|\^[^!]*|![)}\s])[)}\s]*!")


@dataclass(frozen=True)
class Number:
    """An exact value. ``reduced`` is False for a fraction that is not in lowest terms, ``2/4`` or ``4/2``."""

    value: Fraction
    reduced: bool = True


def parse_number(text: str) -> Number | None:
    """The number that a cleaned answer without spaces is, or None.

    Integers with or without thousands commas, decimals, ``1e3``, fractions, mixed numbers, powers and ``3\\times10^{8}``.
    """
    if m := _PLAIN.fullmatch(text):
        return Number(_signed(m[1], Fraction(m[2].replace(",", ""))) * _power(Fraction(10), int(m[3] or 0)))
    if m := _FRACTION.fullmatch(text):
        top, bottom = int(m[2] or m[4]), int(m[3] or m[5])
        return Number(_signed(m[1], Fraction(top, bottom)), math.gcd(top, bottom) == 1 and abs(bottom) != 1) if bottom else None
    if m := _MIXED.fullmatch(text):
        return Number(_signed(m[1], int(m[2]) + Fraction(int(m[3]), int(m[4])))) if int(m[4]) else None
    if m := _POWER.fullmatch(text):
        base = Fraction(m[3].replace(",", ""))
        exponent = int(m[4] or m[5])
        if base == 0 and exponent <= 0:
            return None
        return Number(_signed(m[1], Fraction((m[2] or "1").replace(",", "")) * _power(base, exponent)))
    return None


def check_size(text: str) -> None:
    """Refuse expressions whose value could not be written down.

    Raises:
        Ungradable: a tower of powers, an exponent of five digits or more, or a factorial of such a number or of a factorial.
    """
    for pattern, what in ((_TOWER, "a tower of powers"), (_BIG_EXPONENT, "a huge exponent"), (_BIG_FACTORIAL, "a huge factorial")):
        if pattern.search(text):
            raise Ungradable(f"the answer holds {what}")


def _power(base: Fraction, exponent: int) -> Fraction:
    size = max(abs(base.numerator), base.denominator).bit_length() * math.log10(2)
    if size * abs(exponent) > MAX_DIGITS:
        raise Ungradable(f"the answer has more than {MAX_DIGITS} digits")
    return base**exponent


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value
