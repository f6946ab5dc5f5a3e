"""``custom:`` of IFBench: instructions of one task each."""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import re
import unicodedata

from miles_rewards.ifbench.instruction import Arguments, Check
from miles_rewards.ifbench.text import PUNCTUATION, bare_words, listed, sentences

CAPITALS = listed(
    "Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin Amsterdam Warsaw "
    "London Brussels Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz Chisinau Bern Ljubljana Zagreb"
)
CITY_COLUMNS = ["ID", "Country", "City", "Year", "Count"]
PRODUCT_COLUMNS = ["ProductID", "Category", "Brand", "Price", "Stock"]
STUDENT_COLUMNS = ["StudentID", "Subject", "Grade", "Semester", "Score"]
COUNTRIES = 52
_QUESTION = re.compile(r"Question \d+[.|):;]?")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_NUMBER = re.compile(r"\d+")


def multiples(response: str, given: Arguments) -> bool:
    """The numbers are the multiples of 7 from 14 to 49, in order."""
    del given
    return _NUMBER.findall(response) == ["14", "21", "28", "35", "42", "49"]


def mcq_count_length(response: str, given: Arguments) -> bool:
    """Four questions with five options each, every question longer than the one before, and nothing in front of them."""
    del given
    if not response.startswith("Question"):
        return False
    parts = [part.strip() for part in _QUESTION.split(response) if part.strip()]
    lengths = []
    for part in parts:
        lines = [line.strip() for line in part.split("\n")]
        places = [place for place, line in enumerate(lines) if _OPTION.match(line)]
        if len(places) != 5:
            return False
        lengths.append(len(" ".join(lines[: places[0]]).strip()))
    return len(parts) == 4 and all(before < after for before, after in itertools.pairwise(lengths))


def reverse_newline(response: str, given: Arguments) -> bool:
    """From Zimbabwe on there are 52 lines or more, in reverse alphabetical order."""
    del given
    lines = [line for each in response.split("\n") if (line := each.strip(PUNCTUATION + " "))]
    start = next((place for place, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    names = [_ascii(line) for line in lines[start:]]
    return len(names) >= COUNTRIES and names == sorted(names, reverse=True)


def word_reverse(response: str, given: Arguments) -> bool:
    """Read backwards, word by word, it speaks of the bald eagle."""
    del given
    return "bald eagle" in " ".join(reversed(bare_words(response)))


def character_reverse(response: str, given: Arguments) -> bool:
    """Read backwards, letter by letter, it speaks of the bald eagle."""
    del given
    return "elgae dlab" in response.lower()


def sentence_alphabet(response: str, given: Arguments) -> bool:
    """26 sentences that begin with the letters of the alphabet, in order."""
    del given
    begins = [sentence.lstrip(PUNCTUATION + "“‘ \n\t")[:1].lower() for sentence in sentences(response)]
    return begins == [chr(ord("a") + place) for place in range(26)]


def european_capitals_sort(response: str, given: Arguments) -> bool:
    """The capitals north of 45 degrees, from north to south, with commas between them."""
    del given
    return [name.strip() for name in _ascii(response).rstrip(". \n").split(",") if name.strip()] == list(CAPITALS)


def csv_city(response: str, given: Arguments) -> bool:
    """The header and seven rows of five fields, in commas."""
    del given
    rows = _rows(response, ",")
    return len(rows) == 8 and rows[0] == CITY_COLUMNS and all(len(row) == 5 for row in rows)


def csv_special_character(response: str, given: Arguments) -> bool:
    """The header and fourteen rows of five fields, one of which is quoted and has a special character."""
    del given
    rows = _rows(response, ",")
    quoted = re.findall(r'"([^"\n]*)"', response.strip().partition("\n")[2])
    special = any(not (character.isalnum() or character.isspace()) for field in quoted for character in field)
    return len(rows) == 15 and [name.strip() for name in rows[0]] == PRODUCT_COLUMNS and all(len(r) == 5 for r in rows) and special


def csv_quotes(response: str, given: Arguments) -> bool:
    """The header and three rows of five fields, in tabs, every field quoted."""
    del given
    lines = [line for line in response.strip().split("\n") if line.strip()]
    fields = [[field.strip() for field in line.split("\t")] for line in lines]
    quoted = all(len(field) > 1 and field[0] == '"' == field[-1] for line in fields for field in line)
    return len(lines) == 4 and all(len(line) == 5 for line in fields) and quoted and _names(fields[0]) == STUDENT_COLUMNS


def date_format_list(response: str, given: Arguments) -> bool:
    """Days between 1769 and 1821 as YYYY-MM-DD, with commas between them."""
    del given
    for text in response.strip().split(","):
        date = text.strip()
        if not _DATE.fullmatch(date) or not "1769" <= date[:4] <= "1821":
            return False
        try:
            datetime.date.fromisoformat(date)
        except ValueError:
            return False
    return True


def _rows(text: str, delimiter: str) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(text.strip()), delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return []


def _names(fields: list[str]) -> list[str]:
    return [field.strip('"') for field in fields]


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


TABLE: dict[str, Check] = {
    "character_reverse": character_reverse,
    "csv_city": csv_city,
    "csv_quotes": csv_quotes,
    "csv_special_character": csv_special_character,
    "date_format_list": date_format_list,
    "european_capitals_sort": european_capitals_sort,
    "mcq_count_length": mcq_count_length,
    "multiples": multiples,
    "reverse_newline": reverse_newline,
    "sentence_alphabet": sentence_alphabet,
    "word_reverse": word_reverse,
}
