"""``words:`` of IFBench."""

from __future__ import annotations

import itertools
from collections import Counter

from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.syllables import count_syllables
from miles_rewards.ifbench.text import bare, bare_words, sentences, tokens, trimmed
from miles_rewards.ifbench.verbs import is_verb

CONSONANTS = frozenset("bcdfghjklmnpqrstvwxyz")


def alphabet(response: str, given: Arguments) -> bool:
    """Each word begins with the letter after that of the word before, and after z comes a."""
    del given
    letters = [ord(word[0]) - ord("a") for word in bare_words(response)]
    return bool(letters) and all(letter == (letters[0] + place) % 26 for place, letter in enumerate(letters))


def vowel(response: str, given: Arguments) -> bool:
    """One paragraph with at most three of the five vowels."""
    del given
    text = response.strip().lower()
    return "\n" not in text and len(set("aeiou") & set(text)) <= 3


def consonants(response: str, given: Arguments) -> bool:
    """Every word has two consonants in a row."""
    del given
    words = [word for word in response.lower().split() if any(character.isalnum() for character in word)]
    return all(any(a in CONSONANTS and b in CONSONANTS for a, b in itertools.pairwise(word)) for word in words)


def palindrome(response: str, given: Arguments) -> bool:
    """At least ten words of five letters or more that read the same backwards."""
    del given
    return sum(len(word) >= 5 and word == word[::-1] for word in bare_words(response)) >= 10


def prime_lengths(response: str, given: Arguments) -> bool:
    """Every word's length is a prime number."""
    del given
    return all(_prime(length) for length in {len(word) for word in bare(response).split()})


def repeats(response: str, given: Arguments) -> bool:
    """No word more than so many times."""
    return max(Counter(bare_words(response)).values(), default=0) <= given.integer("small_n")


def start_verb(response: str, given: Arguments) -> bool:
    """The first word is a verb."""
    del given
    words = tokens(response.lstrip())
    return bool(words) and is_verb(words[0])


def odd_even_syllables(response: str, given: Arguments) -> bool:
    """Words with an odd number of syllables alternate with words with an even one."""
    del given
    odd = [count_syllables(word) % 2 for word in bare_words(response)]
    return all(a != b for a, b in itertools.pairwise(odd))


def last_first(response: str, given: Arguments) -> bool:
    """Each sentence begins with the last word of the one before."""
    del given
    words = [[word for each in sentence.lower().split() if (word := trimmed(each))] for sentence in sentences(response)]
    return all(before and after and before[-1] == after[0] for before, after in itertools.pairwise(words))


def paragraph_last_first(response: str, given: Arguments) -> bool:
    """Each line ends with the word that it begins with."""
    del given
    lines = [[word for each in line.lower().split() if (word := trimmed(each))] for line in response.split("\n")]
    return all(words[0] == words[-1] for words in lines if words)


def no_consecutive(response: str, given: Arguments) -> bool:
    """No two words in a row begin with the same letter."""
    del given
    words = bare_words(response)
    return all(before[0] != after[0] for before, after in itertools.pairwise(words))


def keywords_specific_position(response: str, given: Arguments) -> bool:
    """The mth word of the nth sentence is the keyword."""
    nth, mth, found = given.integer("n"), given.integer("m"), sentences(response)
    words = tokens(found[nth - 1]) if 1 <= nth <= len(found) else []
    return 1 <= mth <= len(words) and words[mth - 1].lower() == given.text("keyword").lower()


def words_position(response: str, given: Arguments) -> bool:
    """The second word, and the last but one, are the keyword."""
    words = [word.lower() for word in tokens(response)]
    return len(words) > 1 and words[1] == words[-2] == given.text("keyword").lower()


def _prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


TABLE: dict[str, Check] = {
    "alphabet": alphabet,
    "consonants": consonants,
    "keywords_specific_position": keywords_specific_position,
    "last_first": last_first,
    "no_consecutive": no_consecutive,
    "odd_even_syllables": odd_even_syllables,
    "palindrome": palindrome,
    "paragraph_last_first": paragraph_last_first,
    "prime_lengths": prime_lengths,
    "repeats": repeats,
    "start_verb": start_verb,
    "vowel": vowel,
    "words_position": words_position,
}
