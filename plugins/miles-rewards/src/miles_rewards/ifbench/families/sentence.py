"""``sentence:`` of IFBench."""

from __future__ import annotations

import itertools
import re

from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.text import PUNCTUATION, bare, sentences


def alliteration_increment(response: str, given: Arguments) -> bool:
    """Each sentence has more words in runs of the same first letter than the one before."""
    del given
    before = -1
    for sentence in sentences(response):
        letters = [word[0] for each in sentence.lower().split() if (word := each.lstrip(PUNCTUATION + "“”‘’"))]
        count = sum(
            letter in (letters[place - 1] if place else None, letters[place + 1] if place + 1 < len(letters) else None)
            for place, letter in enumerate(letters)
        )
        if count <= before:
            return False
        before = count
    return True


def increment(response: str, given: Arguments) -> bool:
    """Each sentence has exactly so many words more than the one before."""
    more = given.integer("small_n")
    counts = [len(bare(sentence).split()) for sentence in sentences(response)]
    return all(after == before + more for before, after in itertools.pairwise(counts))


def keyword(response: str, given: Arguments) -> bool:
    """The Nth sentence has the word, in any case."""
    nth, found = given.integer("N"), sentences(response)
    word = re.escape(given.text("word"))
    return 1 <= nth <= len(found) and re.search(rf"(?<!\w){word}(?!\w)", found[nth - 1], re.IGNORECASE) is not None


TABLE: dict[str, Check] = {"alliteration_increment": alliteration_increment, "increment": increment, "keyword": keyword}
