r"""Reward ``gpqa``: 1.0 when a response chooses the right option of a multiple-choice question, else 0.0.

Source: the question format of GPQA (Rein et al. 2023, arXiv:2311.12022).

Contract: the options have the letters of ``metadata["valid_letters"]``, else the first letters for ``metadata["choices"]``, else A
to H. The right one is ``metadata["correct_letter"]``, else the label: a letter, the text of a choice, or a place counted from 0.
Of a response the text after the last ``</think>`` counts, 20,000 characters at most. It chooses by being the text of a choice, or
in this order by

1. the last box that holds a letter, or the last statement of an answer: ``the answer is (B)``, ``B is correct``;
2. the last ``option B`` or ``choice B`` that is not called wrong;
3. the last capital letter that stands alone;
4. the text of a choice, or of the label: the one named last.

Examples: ``The answer is (B)`` for ``B`` is 1.0; ``It is Paris.`` for ``A`` with the choices Paris and London is 1.0.

Deliberate differences: the last statement counts, not the first; ``answer depends`` states no D; ``I`` and ``A`` as words are no
letters; two letters in one statement (``A or B``) are no choice; texts are compared as whole words. A question whose right option
cannot be told is ``Invalid``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from miles_core.options import Config
from miles_core.samples import Sample, Scored
from miles_rewards.mathematics.boxed import last_boxed
from miles_rewards.rule import RuleReward
from miles_rewards.ungradable import Ungradable

TAIL = 20_000
_MARKS = r"[\s*_(\[{$\"'`\\]{0,12}(?:(?:text|textbf|mathrm|mathbf|boxed)\{[\s(*]{0,4}){0,2}"
_END = r"(?![A-Za-z0-9]|['’][a-z])"
_IS = r"(?:(?:\s{1,8}(?:is|was|would\s{1,4}be|must\s{1,4}be|should\s{1,4}be)(?![A-Za-z]))?\s{0,8}[*_]{0,3}\s{0,8}[:=]?)"
_OPTION = r"(?:\s{0,8}(?:option|choice|letter)(?![A-Za-z]))?"
_STATED = re.compile(rf"\banswer{_IS}{_OPTION}{_MARKS}(?P<letter>[A-Z]){_END}", re.IGNORECASE)
_CORRECT = re.compile(
    rf"\b(?:correct|right|best)\s{{1,8}}(?:option|choice)[*_]{{0,3}}(?:\s{{1,8}}is|\s{{0,8}}[:=]){_OPTION}{_MARKS}(?P<letter>[A-Z]){_END}"
    r"|(?<![A-Za-z0-9'’])(?P<first>[A-Z])[)\]*_.]{0,4}\s{1,8}is\s{1,8}(?:the\s{1,8})?(?:correct|right|best)(?![A-Za-z])",
    re.IGNORECASE,
)
_MENTION = re.compile(
    rf"\b(?:option|choice){_IS}{_MARKS}(?P<letter>[A-Z]){_END}"
    r"(?![)\]*_.]{0,4}\s{1,8}(?:is|was|seems|looks)\s{1,8}(?:clearly\s{1,8})?(?:not|wrong|incorrect|false))",
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?<![A-Za-z0-9'’\\_])[A-Z](?![A-Za-z0-9]|['’][a-z])")
_ARTICLE = re.compile(r"[ \t]{1,8}[a-z]")
_SECOND = re.compile(r"[)\]}*_\"'$\s]{0,8}(?:or|and|/|&)\s{0,8}(?:option\s{1,4})?[(\[*_\"'$]{0,4}(?P<letter>[A-Z])(?![A-Za-z0-9])")
# Signs count, or x - 1 were x + 1; the punctuation of sentences and of Markdown does not.
_WORD = re.compile(r"[^\W_]+|[^\w\s.,;:!?\"'`*$]")


def create(config: Config) -> RuleReward:
    """The reward."""
    del config
    return RuleReward(grade)


def grade(sample: Sample) -> Scored:
    """Grade one sample.

    Raises:
        Ungradable: the right option cannot be told.
    """
    choices = _choices(sample.metadata.get("choices"))
    letters = valid_letters(sample.metadata, choices)
    correct = correct_letter(sample.metadata, sample.label, choices, letters)
    response = sample.response.rpartition("</think>")[2][-TAIL:]
    said = _words(response)
    whole = [letter for letter, choice in zip(letters, choices, strict=False) if len(said) > 1 and _words(choice) == said]
    chosen = whole[0] if len(whole) == 1 else chosen_letter(response, letters)
    if chosen is None or correct is None:
        return _by_text(response, correct, sample.label, choices, letters)
    return Scored(float(chosen == correct), f"chose {chosen}")


def chosen_letter(response: str, letters: list[str]) -> str | None:
    """The letter that a response chooses, or None; of two in one breath neither."""
    content = (last_boxed(response) or "").strip()
    inner = re.fullmatch(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?[\s(*]{0,4}([A-Za-z])[\s).*}:]{0,6}", content)
    if inner and inner[1].upper() in letters:
        return inner[1].upper()
    stated = [*_STATED.finditer(response), *_CORRECT.finditer(response)]
    for matches in (sorted(stated, key=lambda match: match.end()), list(_MENTION.finditer(response))):
        for match in reversed(matches):
            group = "letter" if match["letter"] else "first"
            letter = _letter(response, match.start(group), letters)
            if letter is not None:
                second = _SECOND.match(response, match.end("letter")) if group == "letter" else None
                return None if second and second["letter"] in letters and second["letter"] != letter else letter
    alone = [match for match in _ALONE.finditer(response) if match.group() in letters]
    for match in reversed(alone):
        if _letter(response, match.start(), letters) is not None:
            return match.group()
    return None


def _letter(text: str, place: int, letters: list[str]) -> str | None:
    """The option's letter at a place; None for one that is none, or the word ``a`` or ``I``."""
    letter = text[place].upper()
    if letter not in letters:
        return None
    follows = _ARTICLE.match(text, place + 1)
    if not follows:
        return letter
    word = text[follows.end() - 1 :][:12].split()[0].strip(".,;:")
    said = word in ("is", "because", "since", "as", "and", "or", "with", "by", "for", "from", "per", "was")
    article = letter == "I" or (letter == "A" and not said)
    return letter if text[place].isupper() and not article else None


def valid_letters(metadata: Mapping[str, object], choices: list[str]) -> list[str]:
    """The letters of the options, capitals.

    Raises:
        Ungradable: ``metadata["valid_letters"]`` are no letters.
    """
    given = metadata.get("valid_letters")
    if given:
        found = [str(letter).strip().upper() for letter in given] if isinstance(given, str | list | tuple) else []
        if not found or any(letter not in string.ascii_uppercase or len(letter) != 1 for letter in found):
            raise Ungradable("metadata valid_letters is no list of letters")
        return found
    return list(string.ascii_uppercase[: len(choices)] or "ABCDEFGH")


def correct_letter(metadata: Mapping[str, object], label: object, choices: list[str], letters: list[str]) -> str | None:
    """The letter of the right option; None for a text when the choices are not known.

    Raises:
        Ungradable: there is neither a label nor a correct letter, or it is none of the options.
    """
    given = metadata.get("correct_letter")
    if isinstance(given, str) and given.strip():
        letter = given.strip().upper()
        if letter not in letters:
            raise Ungradable(f"the correct letter {letter!r} is none of {''.join(letters)}")
        return letter
    if isinstance(label, bool) or not isinstance(label, str | int | float) or not str(label).strip():
        raise Ungradable("the label is missing" if label in (None, "") else f"the label is a {type(label).__name__}")
    text = str(label).strip()
    if len(bare := text.strip("().").upper()) == 1 and bare.isalpha():
        # A letter that is an option's says so whatever letters were assumed.
        if bare not in letters and metadata.get("valid_letters"):
            raise Ungradable(f"the label {bare!r} is none of {''.join(letters)}")
        if bare not in letters:
            letters.append(bare)
        return bare
    if isinstance(label, str):
        # A number as text may be a choice's text; a number is a place.
        for letter, choice in zip(letters, choices, strict=False):
            if _words(choice) == _words(text) and _words(text):
                return letter
    if re.fullmatch(r"\d{1,2}(?:\.0)?", text):
        place = int(float(text))
        if place >= len(letters):
            raise Ungradable(f"the label {text} is no place among {len(letters)} options")
        return letters[place]
    if choices or not isinstance(label, str):
        raise Ungradable(f"the label {text[:40]!r} is none of the choices")
    return None


def _by_text(response: str, correct: str | None, label: object, choices: list[str], letters: list[str]) -> Scored:
    """Which choice's text, as whole words, the response names last; the longer one when two end together."""
    said = f" {' '.join(_words(response))} "
    texts = dict(zip(letters, choices, strict=False))
    if correct is None:
        texts[""] = str(label)
    best, found = (-1, 0), None
    for letter, choice in texts.items():
        wanted = " ".join(_words(choice))
        place = said.rfind(f" {wanted} ") if wanted else -1
        if place >= 0 and (place + len(wanted), len(wanted)) > best:
            best, found = (place + len(wanted), len(wanted)), letter
    if found is None:
        return Scored(0.0, "no choice found")
    return Scored(float(found == (correct or "")), f"chose {texts[found][:40]}")


def _choices(given: object) -> list[str]:
    return [str(choice) for choice in given] if isinstance(given, list | tuple) else []


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
