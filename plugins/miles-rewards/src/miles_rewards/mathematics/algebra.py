"""Equality by computer algebra. Imported in worker processes only: SymPy takes long to load and may never return."""

from __future__ import annotations

import logging

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from math_verify.grader import sympy_expr_eq

from miles_rewards.mathematics.compare import equal
from miles_rewards.ungradable import Ungradable

DIGITS = 30
TOLERANCE = sympy.Float("1e-20", DIGITS)
FLOAT_TOLERANCE = sympy.Float("1e-10", DIGITS)
POINTS = tuple(sympy.Rational(n, 7919) for n in (6007, -9311, 15013, -3001))
"""Where expressions are compared before they are simplified: fractions that are special in no way, of both signs."""
_NOT_NUMBERS = (sympy.nan, sympy.zoo)
_NORMAL = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False)

for _chatty in ("latex2sympy2_extended", "math_verify"):
    logging.getLogger(_chatty).setLevel(logging.CRITICAL)


def grade(answer: str, label: str) -> float:
    """1.0 or 0.0; the target of the math reward's pool.

    Raises:
        Ungradable: the label cannot be read.
    """
    return float(bool(equal(answer, label, algebraic)))


def algebraic(answer: str, label: str) -> bool:
    """Whether two cleaned LaTeX expressions denote the same thing. An answer that cannot be parsed does not.

    Raises:
        Ungradable: the label cannot be parsed.
    """
    theirs = _parse(label)
    if theirs is None:
        raise Ungradable(f"the label cannot be parsed: {label}")
    ours = _parse(answer)
    if ours is None:
        return False
    if isinstance(ours, sympy.Expr) and isinstance(theirs, sympy.Expr):
        return _same_expression(ours.doit(), theirs.doit())
    return bool(sympy_expr_eq(theirs, ours, 10, 15))


def _parse(text: str) -> object | None:
    """A SymPy object, or None. The parser is a grammar: nothing of the text is evaluated as code."""
    try:
        return latex2sympy(text, normalization_config=_NORMAL)  # type: ignore[no-any-return]
    except (MemoryError, RecursionError):
        raise
    except Exception:
        # The parser raises plain Exception for a syntax error.
        return None


def _same_expression(ours: sympy.Expr, theirs: sympy.Expr) -> bool:
    if theirs.has(*_NOT_NUMBERS):
        raise Ungradable(f"the label has no value: {theirs}")
    if ours == theirs:
        return True
    if ours.has(*_NOT_NUMBERS) or ours.is_infinite or theirs.is_infinite:
        return False
    difference = ours - theirs
    if not difference.free_symbols:
        tolerance = FLOAT_TOLERANCE if difference.has(sympy.Float) else TOLERANCE
        value = sympy.N(difference, DIGITS)
        scale = sympy.Max(1, abs(sympy.N(theirs, DIGITS)))
        if value.is_number and scale.is_comparable:
            return bool(abs(value) <= tolerance * scale)
    elif _differ_somewhere(difference, theirs):
        return False
    return bool(sympy.simplify(difference) == 0)


def _differ_somewhere(difference: sympy.Expr, theirs: sympy.Expr) -> bool:
    """Whether two expressions have different values at one of a few points, which takes a hundredth of simplifying them."""
    symbols = sorted(difference.free_symbols, key=str)
    for point in range(len(POINTS)):
        values = {symbol: POINTS[(point + place) % len(POINTS)] + place for place, symbol in enumerate(symbols)}
        there = sympy.N(difference, DIGITS, subs=values)
        scale = sympy.N(theirs, DIGITS, subs=values)
        known = there.is_number and there.is_finite and scale.is_finite
        if known and abs(there) > FLOAT_TOLERANCE * sympy.Max(1, abs(scale)):
            return True
    return False
