"""``ratio:`` of IFBench."""

from __future__ import annotations

import re

from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.text import bare_words, listed, sentences

STOP_WORDS = frozenset(
    listed(
        "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers "
        "herself it its itself they them their theirs themselves what which who whom this that these those am is are "
        "was were be been being have has had having do does did doing a an the and but if or because as until while of "
        "at by for with about against between into through during before after above below to from up down in out on "
        "off over under again further then once here there when where why how all any both each few more most other "
        "some such no nor not only own same so than too very s t can will just don should now d ll m o re ve y ain aren "
        "couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn"
    )
)
TOLERANCE = 2.0
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+(?:-\w+)*|[^\w\s]")


def stop_words(response: str, given: Arguments) -> bool:
    """Stop words are at most so many percent of the words."""
    words = _WORD.findall(response.lower())
    return bool(words) and 100 * sum(word in STOP_WORDS for word in words) / len(words) <= given.number("percentage")


def sentence_type(response: str, given: Arguments) -> bool:
    """Twice as many statements as questions, and some of both."""
    del given
    statements, questions, _ = _types(response)
    return statements == 2 * questions > 0


def sentence_balance(response: str, given: Arguments) -> bool:
    """As many statements as questions as exclamations, and some of each."""
    del given
    statements, questions, exclamations = _types(response)
    return statements == questions == exclamations > 0


def overlap(response: str, given: Arguments) -> bool:
    """So many percent, give or take two, of the response's different trigrams are in the reference text."""
    ours, theirs = _trigrams(response), _trigrams(given.text("reference_text"))
    wanted = given.number("percentage")
    return bool(ours) and abs(100 * len(ours & theirs) / len(ours) - wanted) <= TOLERANCE


def sentence_words(response: str, given: Arguments) -> bool:
    """Three sentences with the same number of characters, and no word twice."""
    del given
    found = sentences(response)
    words = bare_words(response)
    return len(found) == 3 and len({len(each) for each in found}) == 1 and len(words) == len(set(words))


def _types(response: str) -> tuple[int, int, int]:
    ends = [sentence.rstrip("\"'”’)]*_ ")[-1:] for sentence in sentences(response)]
    return ends.count("."), ends.count("?"), ends.count("!")


def _trigrams(text: str) -> set[tuple[str, str, str]]:
    words = _TOKEN.findall(text)
    return set(zip(words, words[1:], words[2:], strict=False))


TABLE: dict[str, Check] = {
    "overlap": overlap,
    "sentence_balance": sentence_balance,
    "sentence_type": sentence_type,
    "sentence_words": sentence_words,
    "stop_words": stop_words,
}
