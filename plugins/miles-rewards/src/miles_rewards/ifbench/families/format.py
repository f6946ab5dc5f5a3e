"""``format:`` of IFBench."""

from __future__ import annotations

import itertools
import re

from miles_rewards.ifbench.emoji import is_emoji
from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.text import PUNCTUATION, bare, listed, sentences, tokens, trimmed

PAIRS = {")": "(", "]": "[", "}": "{"}
MINOR = frozenset(
    listed("a an the and but or nor for so yet as at by in of off on per to up via with from into onto over than if is it be vs")
)
TEMPLATE = ("My Answer:", "My Conclusion:", "Future Outlook:")
_LETTERS = re.compile(r"\W{0,8}[aA]\W{0,8}[bB]\W{0,8}[cC]")
_INSIDE = re.compile(r"(?<=\w)['’](?=\w)")
_CURLY = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})
_OPENING = re.compile(r"<(i|em)>", re.IGNORECASE)
_BULLET = re.compile(r"[ \t]*\*(?!\*)")
_SUB = re.compile(r"[ \t]*-(?!--)")


def parentheses(response: str, given: Arguments) -> bool:
    """Brackets of three kinds, five levels deep and closed in order from there."""
    del given
    opened: list[str] = []
    deepest = 0
    for character in response:
        if character in "([{":
            opened.append(character)
            deepest = max(deepest, len(opened))
        elif character in PAIRS:
            if not opened or opened.pop() != PAIRS[character]:
                opened, deepest = [], 0
            elif deepest >= 5:
                return True
    return False


def quotes(response: str, given: Arguments) -> bool:
    """Quotes three levels deep, double and single in turn. Apostrophes within words are none."""
    del given
    opened: list[str] = []
    deepest = 0
    for character in _INSIDE.sub("", response).translate(_CURLY):
        if opened and character == opened[-1]:
            opened.pop()
            if deepest - len(opened) >= 3:
                return True
        elif character in "\"'":
            opened.append(character)
            deepest = max(deepest, len(opened))
    return False


def options(response: str, given: Arguments) -> bool:
    """The response is one of the options; letters such as ``a)`` as they are written, words in any case and punctuation."""
    text = given.text("options")
    separator = "/" if "/" in text else "or" if "or" in text else ","
    choices = [choice.strip() for choice in text.split(separator)]
    if _LETTERS.match(text):
        return response.strip() in choices
    return response.strip().strip(PUNCTUATION + " ").lower() in [choice.strip(PUNCTUATION + " ").lower() for choice in choices]


def newline(response: str, given: Arguments) -> bool:
    """Each word stands on a line of its own."""
    del given
    return all(len(line.split()) <= 1 for line in bare(response).split("\n"))


def emoji(response: str, given: Arguments) -> bool:
    """Each sentence ends with an emoji, before or behind its last mark."""
    del given
    found = sentences(response)
    for number, sentence in enumerate(found):
        following = found[number + 1] if number + 1 < len(found) else ""
        end = bare(sentence).strip()[-2:]
        begin = bare(following).strip()[:1]
        if not any(map(is_emoji, end)) and not (begin and is_emoji(begin)) and any(c.isalnum() for c in sentence):
            return False
    return True


def line_indent(response: str, given: Arguments) -> bool:
    """Two lines or more, each indented further than the one before."""
    del given
    indents = [len(line) - len(line.lstrip(" ")) for line in response.split("\n") if line.strip()]
    return len(indents) > 1 and all(before < after for before, after in itertools.pairwise(indents))


def quote_unquote(response: str, given: Arguments) -> bool:
    """No quotation follows right on another, and none ends the response."""
    del given
    text = "".join(response.translate(_CURLY).replace("'\"'", "").split())
    return '""' not in text and not text.rstrip(PUNCTUATION.replace('"', "") + "0123456789").endswith('"')


def list_with(response: str, given: Arguments) -> bool:
    """The separator occurs twice or more."""
    return response.count(given.text("sep")) >= 2


def thesis(response: str, given: Arguments) -> bool:
    """The first italics in HTML have text in them, and text behind them."""
    del given
    opening = _OPENING.search(response)
    if opening is None:
        return False
    inside, closing, behind = response[opening.end() :].partition(f"</{opening[1]}>")
    return bool(closing and inside.strip() and behind.strip())


def sub_bullets(response: str, given: Arguments) -> bool:
    """There are lines that begin with ``*``, and each is followed by a line that begins with ``-`` before the next."""
    del given
    subs: list[int] = []
    for line in response.split("\n"):
        if _BULLET.match(line):
            subs.append(0)
        elif subs and _SUB.match(line):
            subs[-1] += 1
    return bool(subs) and all(subs)


def no_bullets_bullets(response: str, given: Arguments) -> bool:
    """Two sentences or more that end with a full stop, and then two lines or more that begin with ``*``, and nothing else."""
    del given
    lines = [line.strip() for line in response.split("\n") if line.strip()]
    first = next((place for place, line in enumerate(lines) if line.startswith("*") and not line.startswith("**")), len(lines))
    before, bullets = lines[:first], lines[first:]
    stops = sum(sentence.rstrip("\"'”’)*_").endswith(".") for line in before for sentence in sentences(line))
    return stops >= 2 and len(bullets) >= 2 and all(line.startswith("*") for line in bullets)


def output_template(response: str, given: Arguments) -> bool:
    """The three headings occur."""
    del given
    return all(heading in response for heading in TEMPLATE)


def title_case(response: str, given: Arguments) -> bool:
    """Every word begins with a capital letter; short words of grammar may do without, except the first."""
    del given
    words = [word for token in tokens(response) if (word := trimmed(token)) and word[0].isalpha()]
    return all(not word[0].islower() or (place > 0 and word in MINOR) for place, word in enumerate(words))


def no_whitespace(response: str, given: Arguments) -> bool:
    """No white space inside the response."""
    del given
    return not any(character.isspace() for character in response)


TABLE: dict[str, Check] = {
    "emoji": emoji,
    "line_indent": line_indent,
    "list": list_with,
    "newline": newline,
    "no_bullets_bullets": no_bullets_bullets,
    "no_whitespace": no_whitespace,
    "options": options,
    "output_template": output_template,
    "parentheses": parentheses,
    "quote_unquote": quote_unquote,
    "quotes": quotes,
    "sub-bullets": sub_bullets,
    "thesis": thesis,
    "title_case": title_case,
}
