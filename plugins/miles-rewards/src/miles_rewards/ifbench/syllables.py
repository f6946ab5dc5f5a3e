"""Syllables of English words, by their vowels."""

from __future__ import annotations

import re

from miles_rewards.ifbench.text import listed

_GROUP = re.compile(r"[aeiouy]+")
_HIATUS = re.compile(r"i[ao](?!us|n(?:$|s|al|ed))|eo(?!u)|ua(?!r)|uo|io(?=t)|[aeiou]ying|ier$|iest$|iet|ism$|creat|being|seeing")
_ONE = frozenset(listed("one once some come gone done were are there where here have give live love move prove eye every people"))
_EXCEPTIONS = {
    "every": 2, "people": 2, "business": 2, "area": 3, "idea": 3, "being": 2, "science": 2, "quiet": 2, "poem": 2, "poet": 2,
    "create": 2, "created": 3, "something": 2, "someone": 2, "sometimes": 2, "somewhere": 2, "everyone": 3, "everything": 3,
    "evening": 2, "different": 3, "interesting": 4, "chocolate": 3, "family": 3, "camera": 3, "fire": 2, "hour": 2, "our": 2,
    "ocean": 2, "recipe": 3, "cafe": 2, "simile": 3, "apostrophe": 4, "catastrophe": 4, "the": 1, "doing": 2, "going": 2,
    "lion": 2, "giant": 2, "dial": 2, "trial": 2, "via": 2, "real": 1, "really": 2, "theatre": 3, "therefore": 2, "maybe": 2,
    "therefore ": 2, "forever": 3, "wednesday": 2, "colonel": 2, "queue": 1, "tongue": 1, "sometime": 2, "whole": 1, "hundred": 2,
}  # fmt: skip


def count_syllables(word: str) -> int:
    """Syllables of a word in lower case; 0 for one without letters. An estimate: right for nine words of ten."""
    if not word.isalpha():
        return 0 if any(character.isdigit() for character in word) else max(len(_GROUP.findall(word)), 0)
    if word in _EXCEPTIONS:
        return _EXCEPTIONS[word]
    if word in _ONE:
        return 1
    count = len(_GROUP.findall(word)) + len(_HIATUS.findall(word))
    if (word.endswith("e") and not word.endswith(("le", "ee", "ye", "ie", "oe", "ue"))) or (
        word.endswith("le") and len(word) > 2 and word[-3] in "aeiouy"
    ):
        count -= 1
    elif (
        word.endswith("es")
        and len(word) > 3
        and not word.endswith(("ses", "ces", "zes", "xes", "ges", "ches", "shes", "ees", "ies"))
    ):
        count -= 0 if word.endswith("les") and word[-4] not in "aeiouy" else 1
    elif (
        word.endswith("ed")
        and len(word) > 3
        and word[-3] not in "tdaeiouy"
        and not (word.endswith("led") and word[-4] not in "aeiouyl")
    ):
        count -= 1
    elif word.endswith(("sm", "thm")) and not word.endswith("ism"):
        count += 1
    return max(count, 1)
