"""``count:`` of IFBench."""

from __future__ import annotations

import re

from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.text import count_words, listed, tokens, trimmed

NAMES = listed(
    "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin "
    "Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria "
    "Elijah Layla Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan "
    "Stella Jonathan"
)
CONJUNCTIONS = frozenset(listed("and but for nor or so yet"))
PRONOUNS = frozenset(
    listed(
        "i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself "
        "ourselves yourself yourselves himself herself itself themselves this that these those who whom whose which "
        "what whoever whomever whatever whichever anybody anyone anything everybody everyone everything nobody nothing "
        "somebody someone something each either neither both all some any none"
    )
)
TIMES = (1, 2, 3, 5, 7)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def word_count_range(response: str, given: Arguments) -> bool:
    """Between so many words and so many."""
    return given.integer("min_words") <= count_words(response) <= given.integer("max_words")


def unique_word_count(response: str, given: Arguments) -> bool:
    """At least so many different words."""
    words = {trimmed(word) for word in response.lower().split()} - {""}
    return len(words) >= given.integer("N")


def person_names(response: str, given: Arguments) -> bool:
    """At least so many different names of the list."""
    return len(set(NAMES) & set(re.findall(r"\w+", response))) >= given.integer("N")


def numbers(response: str, given: Arguments) -> bool:
    """Exactly so many numbers in digits; ``1,000`` and ``3.14`` are one each."""
    return sum(1 for _ in _NUMBER.finditer(response)) == given.integer("N")


def pronouns(response: str, given: Arguments) -> bool:
    """At least so many pronouns; ``she/her`` are two."""
    words = (word for token in tokens(response.lower()) for word in (token.partition("'")[0].partition("’")[0],))
    return sum(word in PRONOUNS for word in words) >= given.integer("N")


def punctuation(response: str, given: Arguments) -> bool:
    """Every mark of ``. , ! ? ; :``, and besides those an interrobang."""
    del given
    for interrobang in ("?!", "!?", "‽"):
        if interrobang in response:
            return set(".,!?;:") <= set(response.replace(interrobang, "", 1))
    return False


def conjunctions(response: str, given: Arguments) -> bool:
    """At least so many different coordinating conjunctions."""
    return len(CONJUNCTIONS & {trimmed(word) for word in response.lower().split()}) >= given.integer("small_n")


def keywords_multiple(response: str, given: Arguments) -> bool:
    """Five keywords, as words, once, twice, three, five and seven times."""
    for number, times in enumerate(TIMES, 1):
        word = re.escape(given.text(f"keyword{number}"))
        if sum(1 for _ in re.finditer(rf"\b{word}\b", response, re.IGNORECASE)) != times:
            return False
    return True


def words_japanese(response: str, given: Arguments) -> bool:
    """Every Nth word is Japanese, where it is no number."""
    every = max(given.integer("N"), 1)
    words = (trimmed(word) for word in response.split()[every - 1 :: every])
    return all(_JAPANESE.search(word) for word in words if word and not word.isdigit())


TABLE: dict[str, Check] = {
    "conjunctions": conjunctions,
    "keywords_multiple": keywords_multiple,
    "numbers": numbers,
    "person_names": person_names,
    "pronouns": pronouns,
    "punctuation": punctuation,
    "unique_word_count": unique_word_count,
    "word_count_range": word_count_range,
    "words_japanese": words_japanese,
}
