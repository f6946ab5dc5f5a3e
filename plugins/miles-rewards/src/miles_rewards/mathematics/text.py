"""Answers as text: one spelling for what LaTeX and plain writing spell in many ways.

``clean`` follows the normal forms of Hendrycks et al. 2021 (MATH, arXiv:2103.03874) and Lewkowycz et al. 2022 (Minerva,
arXiv:2206.14858), except where those lose meaning: braces stay, exponents stay, words between answers stay.
"""

from __future__ import annotations

import re

from miles_rewards.ungradable import Ungradable

MAX_LENGTH = 1000
MAX_DEPTH = 50

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_GREEK_NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "rho", "sigma", "tau", "phi", "omega")
_GREEK = dict(zip("αβγδεθλμρστφω", _GREEK_NAMES, strict=True))
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5", "⅙": "1/6"}
_CHARACTERS = str.maketrans(
    {
        **{wide: str(digit) for digit, wide in enumerate("０１２３４５６７８９")},
        **{letter: f"\\{name} " for letter, name in _GREEK.items()},
        **{sign: f"\\frac{{{parts[0]}}}{{{parts[2]}}}" for sign, parts in _VULGAR.items()},
        "−": "-",
        "–": "-",
        "×": "\\times ",
        "·": "\\cdot ",
        "⋅": "\\cdot ",
        "÷": "/",
        "π": "\\pi ",
        "∞": "\\infty ",
        "≤": "\\le ",
        "≥": "\\ge ",
        "≠": "\\ne ",
        "±": "\\pm ",
        "∪": "\\cup ",
        "∩": "\\cap ",
        "∈": "\\in ",
        "∅": "\\emptyset ",
        "°": "\\circ ",
        "\n": " ",
        "\t": " ",
        "~": " ",
        "\u00a0": " ",
        "\u202f": " ",
    }
)
_DIGITS = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_TEXT = re.compile(
    r"(?P<before>[\w)}\].]\s*)?\\(?P<command>text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)\s*"
    r"\{(?P<content>[^{}]*)\}(?P<power>\s*\^\s*\{?\d\}?)?"
)
_JOINS = re.compile(r"\b(?:or|and)\b")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"(?<=\d)\s*\b({'|'.join(_SCALES)})s?\b", re.IGNORECASE)
_SHORT_UNITS = "mm|cm|dm|km|kg|mg|ml|ft|in|yd|mi|lb|oz|hr|am|pm"
_NO_UNITS = "or|and|sin|cos|tan|sec|csc|cot|log|exp|sqrt|alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi|mod|max|min|dozen"
_UNIT = re.compile(rf"(?<=[\d)}}])\s+(?:(?!(?:{_NO_UNITS})\b)(?:[A-Za-z]{{3,}}|of|a|{_SHORT_UNITS})\b\.?\s*)+(?:\^\s*\{{?\d\}}?)?$")
_GROUPS = re.compile(r"(?<![\d.,\\])\d{1,3}(?:(?: |\\[,;: ]|\\!)\d{3})+(?![\d])")
_RAISED = re.compile(r"[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ]+")
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\(?=[A-Za-z])", r"\\"),  # a backslash escaped once too often
        (r"\\?\$|(?<!\\)\\[()\[\]]", ""),
        (r"^\s*\*\*(.*)\*\*\s*$", r"\1"),
        (r"√\s*\(([^()]*)\)|√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1\2}"),
        (r"∛\s*\(([^()]*)\)|∛\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt[3]{\1\2}"),
        (r"√", r"\\sqrt "),
        (r"\\(le|ge|ne)q\b", r"\\\1 "),
        (r"\\varnothing\b", r"\\emptyset "),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![\\A-Za-z])inf(?:inity|ty)(?![A-Za-z])", r"\\infty "),
        (r"\\[dtc]frac\b", r"\\frac"),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:displaystyle|limits|nolimits)\b", ""),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\(?:[,;:> ]|q?quad\b)", " "),
        (r"\{,\}", ","),
        (r"\^\s*\{?\s*(?:\\circ|\\degrees?)\b\s*\}?|\\circ\b|\\degrees?\b", ""),
        (r"\\?%", ""),
        (r"\*\*", "^"),
        (r"\\ast\b|\*", r"\\cdot "),
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"\\frac\s*([0-9A-Za-z])", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}"),
        (r"\^\s*(-\d+|\d{2,})", r"^{\1}"),
        (r"(?<![\d.])(\d+)\s+(\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),
        (r"(?<![\d.\w}])\.(?=\d)", "0."),
    )
)
_ASSIGNMENT = re.compile(r"^([A-Za-z]\w?(?:\([A-Za-z]\))?)\s*(?:=(?!=)|\\in(?![A-Za-z]))\s*(?=\S)")
_REVERSED = re.compile(r"^(.*[^=<>\s])\s*=\s*([A-Za-z])$")
_BETWEEN_DIGITS = re.compile(r"(?<=\d) (?=\d)")
_OPENERS = "([{"
_CLOSERS = ")]}"


def check_text(text: str) -> None:
    """Refuse what no grader should be asked to read.

    Raises:
        Ungradable: longer than 1000 characters, brackets nested deeper than 50, or lone surrogates.
    """
    if len(text) > MAX_LENGTH:
        raise Ungradable(f"an answer of {len(text)} characters; at most {MAX_LENGTH} are graded")
    depth = 0
    for character in text:
        if character in _OPENERS:
            depth += 1
            if depth > MAX_DEPTH:
                raise Ungradable(f"brackets nested deeper than {MAX_DEPTH}")
        elif character in _CLOSERS:
            depth -= 1
        elif "\ud800" <= character <= "\udfff":
            raise Ungradable("the answer holds a lone surrogate, which is no character")


def clean(text: str) -> str:
    """One spelling for an answer; still LaTeX, with single spaces."""
    if _DIGITS.fullmatch(text):
        return text
    text = _RAISED.sub(lambda m: f"^{{{m.group().translate(_SUPERSCRIPTS)}}}", text).translate(_CHARACTERS)
    text = _GROUPS.sub(lambda m: re.sub(r"[^\d]", "", m.group()), text)
    for pattern, replacement in _RULES[:1]:
        text = pattern.sub(replacement, text)
    text = _TEXT.sub(_unwrap, text)
    for pattern, replacement in _RULES[1:]:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+(?:or|and)\s+", ", ", text)
    text = _SCALE.sub(lambda m: f"\\cdot 10^{{{_SCALES[m.group(1).lower()]}}}", text)
    text = " ".join(text.split()).rstrip(".").strip()
    unit = _UNIT.search(text)
    return text[: unit.start()] if unit else text


def key(text: str) -> str:
    """A cleaned answer without spaces, and without case unless it holds LaTeX commands."""
    # Two numbers side by side, as in "6 feet 2 inches", are not one.
    packed = _BETWEEN_DIGITS.sub("\x1f", text).replace(" ", "")
    return packed if "\\" in packed else packed.casefold()


def assignment(text: str) -> tuple[str, str]:
    """``("x", "5")`` of ``x = 5``, ``5 = x`` and ``x \\in 5``; ``("", text)`` of anything else.

    A left side of more than two characters is part of the answer, except a function's: ``f(x) = x^2``.
    """
    if text.count("=") + text.count("\\in ") != 1:
        return "", text
    if reverse := _REVERSED.match(text):
        text = f"{reverse[2]} = {reverse[1]}"
    found = _ASSIGNMENT.match(text)
    return (found[1], text[found.end() :]) if found else ("", text)


def split(text: str) -> tuple[str, list[str], str]:
    """Outer brackets and the parts between top-level commas: ``("(", ["1", "2"], ")")``; no brackets are ``""``."""
    opened, inner, closed = _outer(text)
    if not opened and inner != text:
        return split(inner)
    parts, depth, begin = [], 0, 0
    for place, character in enumerate(inner):
        if character in _OPENERS:
            depth += 1
        elif character in _CLOSERS:
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(inner[begin:place].strip())
            begin = place + 1
    parts.append(inner[begin:].strip())
    return opened, [part for part in parts if part] or [""], closed


def _outer(text: str) -> tuple[str, str, str]:
    opened, closed = text[:1], text[-1:]
    first, last = 1, 1
    if text.startswith("\\{") and text.endswith("\\}"):
        opened, closed, first, last = "\\{", "\\}", 2, 2
    elif opened not in _OPENERS or closed not in _CLOSERS or not opened or len(text) < 2:
        return "", text, ""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPENERS) - (character in _CLOSERS)
        if depth == 0 and place >= first - 1:
            if place != len(text) - 1:
                return "", text, ""
            break
    else:
        return "", text, ""
    inner = text[first : len(text) - last].strip()
    # A LaTeX group is no bracket.
    return ("", inner, "") if opened == "{" else (opened, inner, closed)


def _unwrap(match: re.Match[str]) -> str:
    before, content = match["before"] or "", match["content"].strip()
    if not before or (match["command"].startswith("math") and content in ("e", "i", "d")):
        return before + content + (match["power"] or "")
    if _JOINS.search(content):
        return before + _JOINS.sub(",", f" {content} ")
    if re.search(r"[A-Za-z]", content) and content.lower() not in _SCALES:
        return before  # a unit
    return f"{before} {content}{match['power'] or ''}"
