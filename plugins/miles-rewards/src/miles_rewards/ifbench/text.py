"""Words and sentences. Every function takes time linear in the text."""

from __future__ import annotations

import re
import string

PUNCTUATION = string.punctuation


def listed(words: str) -> tuple[str, ...]:
    """A list of words that is written as one text."""
    return tuple(words.split())


_NO_PUNCTUATION = str.maketrans("", "", PUNCTUATION)
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+(?:[-'’.]\w+)*")
_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)")
_ABBREVIATIONS = frozenset(
    listed(
        "mr mrs ms dr prof st jr sr inc ltd co corp vs etc e.g i.e eg ie cf al approx dept est gen col "
        "capt lt sgt rev hon gov sen rep jan feb mar apr jun jul aug sep sept oct nov dec mt ph.d m.d b.a m.a u.s u.k "
        "u.n a.m p.m ave blvd"
    )
)
_BEFORE_NUMBERS = frozenset({"fig", "no", "nos", "pp", "vol"})


def bare(text: str) -> str:
    """The text without ASCII punctuation."""
    return text.translate(_NO_PUNCTUATION)


def bare_words(text: str) -> list[str]:
    """Its words in lower case, without ASCII punctuation."""
    return bare(text.lower()).split()


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores: ``don't`` is two."""
    return sum(1 for _ in _WORD.finditer(text))


def tokens(text: str) -> list[str]:
    """Words as people count them: ``don't`` and ``well-known`` are one, punctuation is none."""
    return _TOKEN.findall(text)


def trimmed(word: str) -> str:
    """A word without punctuation around it."""
    return word.strip(PUNCTUATION + "“”‘’… ")


def sentences(text: str) -> list[str]:
    """Sentences: they end with ``.``, ``!``, ``?`` or ``…``, closing quotes included, before white space. A line break ends none.

    A full stop after an abbreviation, an initial, or a number that begins a line ends no sentence either.
    """
    found: list[str] = []
    begin = 0
    for end in _END.finditer(text):
        if _goes_on(text, begin, end):
            continue
        sentence = text[begin : end.end()].strip()
        if sentence:
            found.append(sentence)
        begin = end.end()
    rest = text[begin:].strip()
    return [*found, rest] if rest else found


def _goes_on(text: str, begin: int, end: re.Match[str]) -> bool:
    if end[0].rstrip("\"'”’)]*_") in ("...", "…"):
        return text[end.end() : end.end() + 2].strip()[:1].islower()
    if not end[0].startswith(".") or end[0][1:2] in ("!", "?", "."):
        return False
    start = max(begin, end.start() - 24)
    word = re.split(r"[\s(\[\"“*]", text[start : end.start()])[-1]
    if word.isdigit():
        place = end.start() - len(word)
        _, newline, before = text[max(begin, place - 8) : place].rpartition("\n")
        return (bool(newline) or place - 8 <= begin) and not before.strip(' \t*#-_>"“(')
    if word.lower() in _BEFORE_NUMBERS:
        return text[end.end() : end.end() + 2].strip()[:1].isdigit()
    if word.lower() in _ABBREVIATIONS:
        # "etc." and the like may end a sentence; then a capital letter follows.
        return word.lower() not in ("etc", "inc", "ltd", "co", "jr", "sr", "a.m", "p.m", "u.s", "u.k") or not _capital(
            text, end.end()
        )
    return len(word) == 1 and word.isalpha() and word.isupper() and word != "I"


def _capital(text: str, place: int) -> bool:
    return text[place : place + 3].strip(" \n\t\"“'*")[:1].isupper()
