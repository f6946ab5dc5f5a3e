"""Reward ifbench: every instruction, on a response that follows it and on one that does not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.ifbench.grade import INSTRUCTIONS, followed, variants
from miles_rewards.ifbench.language import detect
from miles_rewards.ifbench.options import IfbenchOptions
from miles_rewards.ifbench.reward import instructions
from miles_rewards.ifbench.syllables import count_syllables
from miles_rewards.ifbench.text import sentences, tokens
from miles_rewards.ungradable import Ungradable

CAPITALS = (
    "Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, Amsterdam, Warsaw, "
    "London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, Chișinău, Bern, Ljubljana, Zagreb"
)
QUESTIONS = "\n".join(f"Question {n}. {'Who was it ' * n}?\nA) a\nB) b\nC) c\nD) d\nE) e" for n in range(1, 5))
STORY = " ".join(f"{chr(65 + n)}nd then it was so." for n in range(26))
AFRICA = "\n".join(["Zimbabwe", *(f"Y{chr(122 - n // 26)}{chr(122 - n % 26)}" for n in range(52))])
MANY = "a b b c c c d d d d d e e e e e e e"
KEYWORDS = dict(zip((f"keyword{n}" for n in range(1, 6)), "abcde", strict=True))

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "A WELL-KNOWN one", "A one"),
    ("change_case:english_capital", {}, "THIS IS THE WAY OF IT", "This is the way of it"),
    ("change_case:english_lowercase", {}, "this is the way of it", "das ist der weg und das ist nicht die wahrheit"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say Hi "}, "say hi\nHi", "Hi"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("count:conjunctions", {"small_n": 3.0}, "and, but; or", "And and and, AND"),
    ("count:keywords_multiple", KEYWORDS, MANY, MANY + " e"),
    ("count:numbers", {"N": 3}, "1,000 and 3.14, 5.", "1000"),
    ("count:person_names", {"N": 2}, "Emma met Leo, Leo met Emma", "Emmas met Leonardo"),
    ("count:pronouns", {"N": 4}, "She/her said it's mine", "Mary said so"),
    ("count:punctuation", {}, "a, b; c: d. e! f? g?!", "a, b; c: d. g?!"),
    ("count:unique_word_count", {"N": 3}, "one, two Three", "one two One! two."),
    ("count:word_count_range", {"min_words": 3, "max_words": 6}, "One two three four five", "One two"),
    ("count:words_japanese", {"N": 3}, "one two 三 four five ろく", "one two three"),
    ("custom:character_reverse", {}, ".elgae dlab ehT", "The bald eagle."),
    ("custom:csv_city", {}, "ID,Country,City,Year,Count" + "\n1,a,b,2000,3" * 7, "ID,Country,City,Year,Count" + "\n1,a,b,2000" * 7),
    (
        "custom:csv_quotes",
        {},
        '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"' + '\n"1"\t"a"\t"b"\t"c"\t"4"' * 3,
        "StudentID\tSubject\tGrade\tSemester\tScore" + "\n1\ta\tb\tc\t4" * 3,
    ),
    (
        "custom:csv_special_character",
        {},
        "ProductID,Category,Brand,Price,Stock" + '\n1,a,"b & c",2,3' * 14,
        "ProductID,Category,Brand,Price,Stock" + "\n1,a,b & c,2,3" * 14,
    ),
    ("custom:date_format_list", {}, "1796-04-12, 1805-12-02", "1796-04-31"),
    ("custom:european_capitals_sort", {}, CAPITALS, CAPITALS.replace("Oslo, Tallinn", "Tallinn, Oslo")),
    ("custom:mcq_count_length", {}, QUESTIONS, "Sure!\n" + QUESTIONS),
    ("custom:multiples", {}, "14, 21, 28, 35, 42, 49", "10, 14, 21"),
    ("custom:reverse_newline", {}, AFRICA, AFRICA + "\nZambia"),
    ("custom:sentence_alphabet", {}, STORY, STORY + " More."),
    ("custom:word_reverse", {}, "eagle bald the is It", "It is the bald eagle"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] and [[place]", "[name] and [place"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. more", "Bye."),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "not json"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}, "Section 1 Section 2", "Section 1"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b\n**c**", "* a\n* b\n* c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "* * and *b"),
    ("detectable_format:title", {}, "<<A poem>>\nla", "<< >>"),
    ("format:emoji", {}, "Well 🌿. Then! 👵 It is ❤️", "Well 🌿. Then."),
    ("format:line_indent", {}, "a\n\n b\n   c", "a\nb"),
    ("format:list", {"sep": "!?!?"}, "!?!? a\n!?!? b", "!?!? a"),
    ("format:newline", {}, "one,\ntwo\n\n- three", "one two\nthree"),
    ("format:no_bullets_bullets", {}, "One. Two.\n\n* a\n* b", "One two\n* a\n* b"),
    ("format:no_whitespace", {}, "NOSPACE", "has space"),
    ("format:options", {"options": "yes/no/maybe"}, "Maybe.", "Perhaps"),
    ("format:output_template", {}, "My Answer: a\nMy Conclusion: b\nFuture Outlook: c", "My Answer: a"),
    ("format:parentheses", {}, "a (b [c {d (e [f])}])", "((((a))))"),
    ("format:quote_unquote", {}, '"One" says one. "Two" says two.', '"One" "two"'),
    ("format:quotes", {}, "He said, \"She said, 'They said, \"no\".'\"", "It's the dogs' and 'twas \"so\", didn't it"),
    ("format:sub-bullets", {}, "* **a**\n  - b\n* c\n  - d", "* a\n* b\n - c"),
    ("format:thesis", {}, "<i>It is so.</i> Because.", "<i>It is so.</i>"),
    ("format:title_case", {}, "The Lord of the Rings", "The lord"),
    ("keywords:existence", {"keywords": ["rock", "a+b"]}, "Rockets: a+b", "rock"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rockets", "Rock!"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "less than"}, "a", "a a"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "##", "#"),
    ("language:response_language", {"language": "de"}, "Das ist nicht der Weg, und ich weiß es.", "This is not the way."),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        "One.\n\nWeekend, two.",
        "Weekend.\n\nTwo.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "Mr. A. Bo. Yes!", "Mr. A. Bo is 3.5."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    ("punctuation:no_comma", {}, "no comma here", "a, comma"),
    ("ratio:overlap", {"percentage": 50, "reference_text": "a b c d"}, "x a b c", "a b c d"),
    ("ratio:sentence_balance", {}, "So. So? So!", "none"),
    ("ratio:sentence_type", {}, "So. It is. So?", "none"),
    ("ratio:sentence_words", {}, "One two. Who big? Ten cat!", "One two. One two. One two."),
    ("ratio:stop_words", {"percentage": 50}, "the cat", "the cat is"),
    ("repeat:repeat_change", {"prompt_to_repeat": "Write a poem"}, "Sing a poem", "Write  a poem"),
    ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests.", "Hello"),
    ("repeat:repeat_span", {"prompt_to_repeat": "a b c d", "n_start": 1, "n_end": 2}, "B c", "a b"),
    ("sentence:alliteration_increment", {}, "A dog. Big blue cat. Six silly swans swim.", "Big blue. A dog."),
    ("sentence:increment", {"small_n": 2.0}, "One. One two three.", "One. One two."),
    ("sentence:keyword", {"N": 2.0, "word": "eat"}, "So. We eat.", "We eat. The meat."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'It was "the end."', "The end. Or not"),
    ("startend:quotation", {}, '"So."', '"So.'),
    ("words:alphabet", {}, "Yes, zebras are big", "A cat"),
    ("words:consonants", {}, "strong trees bring", "a strong tree"),
    ("words:keywords_specific_position", {"keyword": "Cat", "n": 2, "m": 3}, "So. It's a cat.", "So. A cat."),
    ("words:last_first", {}, "I saw it. It was big!", "I saw it. He did."),
    ("words:no_consecutive", {}, "one two four ore", "two too"),
    ("words:odd_even_syllables", {}, "the water is open", "the cat"),
    ("words:palindrome", {}, "level " * 10, "level " * 9),
    ("words:paragraph_last_first", {}, "Time is time.\nSo, so", "Time is up"),
    ("words:prime_lengths", {}, "an ace of spade", "four words here"),
    ("words:repeats", {"small_n": 1}, "one two", "One one"),
    ("words:start_verb", {}, "Consider this.", "Galaxies are big."),
    ("words:vowel", {}, "A cat is big on top", "unique\nline"),
    ("words:words_position", {"keyword": "vibrant"}, "A vibrant life, so vibrant indeed", "vibrant life vibrant"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_instruction(name: str, given: dict[str, Any], good: str, bad: str) -> None:
    assert followed(good, [(name, given)]) == [True]
    assert followed(bad, [(name, given)]) == [False]
    assert followed(" \n", [(name, given)]) == [False]


def test_every_instruction_has_a_case() -> None:
    assert sorted(case[0] for case in CASES) == sorted(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25 + 58


HOSTILE = [
    *(mark * 200_000 for mark in ("a", "[", "(", '"', "'", "`", "-", "🌿")),
    *(text * 70_000 for text in ("* ", "<<", ". ", "1.", "1. ", "...", "***", "a.b", "A. ", "aba ", "1,", "Question 1 ")),
    "\ud800" * 1000,
    "answer" + " " * 100_000,
    "\n" * 100_000 + "x",
]


@pytest.mark.parametrize("response", HOSTILE, ids=lambda text: repr(text[:6]))
def test_hostile_responses_take_linear_time(response: str) -> None:
    started = time.monotonic()
    followed(response, [(name, given) for name, given, _, _ in CASES])
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("metadata", "score"),
    [
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, 1.0),
        ({"instruction_id_list": [" punctuation:no_comma ", None, ""]}, 1.0),
        ({"instruction_id_list": ["count:word_count_range"], "kwargs": {"min_words": 3.0, "max_words": 6, "junk": None}}, 1.0),
        (
            {
                "instruction_id_list": ["count:word_count_range", "punctuation:no_comma"],
                "kwargs": [{"min_words": 3, "max_words": 6}],
            },
            1.0,
        ),
        ({"instruction_id_list": ["punctuation:no_comma", "format:no_whitespace"], "kwargs": [{}, {}, {}]}, 0.0),
        ({"instruction_id_list": []}, None),
        ({}, None),
        ({"instruction_id_list": ["no:such"]}, None),
        ({"instruction_id_list": ["count:numbers"], "kwargs": [{"N": "many"}]}, None),
        ({"instruction_id_list": ["count:numbers"], "kwargs": "x"}, None),
    ],
)
def test_metadata(metadata: dict[str, Any], score: float | None, grade: Callable[..., list[Score]]) -> None:
    (found,) = grade("ifbench", [Sample(response="one two three four", metadata=metadata)])
    assert isinstance(found, Invalid) if score is None else found == Scored(score)


def test_reasoning_blanks_and_boxes(grade: Callable[..., list[Score]]) -> None:
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    texts = ["<think>a, b</think>no comma", "no comma</think>a, b", "", "   ", "<think>x</think>"]
    found = grade("ifbench", [Sample(response=text, metadata=row) for text in texts])
    assert [score.value for score in found if isinstance(score, Scored)] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert grade("boxed_ifbench", [Sample(response="a, \\boxed{b}", metadata=row)]) == [Scored(1.0)]
    assert isinstance(grade("ifbench", [Sample(response=None, metadata=row)])[0], Invalid)  # type: ignore[arg-type]


def test_loose(grade: Callable[..., list[Score]]) -> None:
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    sample = Sample(response="Sure, here it is:\nno comma", metadata=row)
    assert grade("ifbench", [sample]) == [Scored(0.0)]
    assert grade("ifbench", [sample], IfbenchOptions(ifbench_loose=True)) == [Scored(1.0)]
    assert variants("*a*\nb\nc")[:4] == ["*a*\nb\nc", "a\nb\nc", "b\nc", "b\nc"]
    assert len(variants("a")) == 8


def test_arguments_are_checked() -> None:
    with pytest.raises(Ungradable, match="relation"):
        followed("a", [("length_constraints:number_words", {"num_words": 1, "relation": "more than"})])
    assert instructions({"instruction_id_list": ["a", "b"], "kwargs": [{"x": 1, "y": None}]}) == [("a", {"x": 1}), ("b", {"x": 1})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. A. Smith paid $3.50, e.g. for tea. Yes.", ["Dr. A. Smith paid $3.50, e.g. for tea.", "Yes."]),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("1. First one. 2. Second", ["1. First one.", "2. Second"]),
        ("1. First.\n2. Second.", ["1. First.", "2. Second."]),
        ("Well... maybe. Or... No.", ["Well... maybe.", "Or...", "No."]),
        ("Tea, cake etc. And more. See example.com.", ["Tea, cake etc.", "And more.", "See example.com."]),
        ("It is no. 5 of them. She said no.", ["It is no. 5 of them.", "She said no."]),
        ("In 2020. 3. Third", ["In 2020.", "3. Third"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_tokens() -> None:
    assert tokens("Don't use well-known e.g. stuff, ok?") == ["Don't", "use", "well-known", "e.g", "stuff", "ok"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is on the mat and it is not going to move.", "en"),
        ("El gato está en la casa y no se va a mover porque es muy feliz.", "es"),
        ("O gato está em casa e não vai sair porque é muito feliz com você.", "pt"),
        ("Le chat est dans la maison et il ne va pas sortir avec vous.", "fr"),
        ("Il gatto è nella casa e non si muove perché è molto felice.", "it"),
        ("Kot jest w domu i nie chce się ruszyć, bo to jest jego dom.", "pl"),
        ("Kissa on talossa ja se ei ole lähdössä, mutta se voi olla hyvin.", "fi"),
        ("Paka yuko ndani ya nyumba na hataki kutoka kwa sababu ya mvua.", "sw"),
        ("Con mèo ở trong nhà và nó không muốn đi ra vì trời mưa.", "vi"),
        ("Кот сидит дома и ещё не вышел, потому что он очень счастливый.", "ru"),
        ("Кіт сидить удома і не хоче виходити.", "uk"),
        ("Котката е в къщата и не иска да излезе.", "bg"),
        ("القط في البيت ولا يريد الخروج.", "ar"),
        ("گربه در خانه است و نمی‌خواهد بیرون برود.", "fa"),
        ("بلی گھر میں ہے اور باہر نہیں جانا چاہتی۔", "ur"),
        ("बिल्ली घर में है और वह बाहर नहीं जाना चाहती।", "hi"),
        ("मांजर घरात आहे आणि ते बाहेर जात नाही.", "mr"),
        ("बिरालो घरमा छ र यो बाहिर जाँदैन।", "ne"),
        ("猫は家にいて、外に出たくない。", "ja"),
        ("고양이는 집에 있다.", "ko"),
        ("ಬೆಕ್ಕು ಮನೆಯಲ್ಲಿದೆ.", "kn"),
        ("12345 !!", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert detect(text) == language


@pytest.mark.parametrize(("response", "language", "expected"), [("yes", "en", True), ("yes", "ar", False), ("4 + 4", "ar", True)])
def test_what_no_language_can_be_told_of(response: str, language: str, expected: bool) -> None:
    assert followed(response, [("language:response_language", {"language": language})]) == [expected]


def test_syllables() -> None:
    counts = {
        "cat": 1,
        "make": 1,
        "walked": 1,
        "likes": 1,
        "water": 2,
        "table": 2,
        "wanted": 2,
        "rhythm": 2,
        "nature": 2,
        "boxes": 2,
    }
    counts |= {"beautiful": 3, "idea": 3, "possible": 3, "creation": 3, "education": 4, "3": 0}
    assert {word: count_syllables(word) for word in counts} == counts


def test_public_responses(data: Callable[[str], list[dict[str, Any]]], grade: Callable[..., list[Score]]) -> None:
    """A model's answers to IFBench: every one is graded, and the share that follows is that of docs/rewards-measured.md."""
    prompts = {" ".join(row["prompt"].split()): row for row in data("ifbench/IFBench_test.jsonl")}
    answers = [(prompts.get(" ".join(row["prompt"].split())), row["response"]) for row in data("ifbench/sample_output.jsonl")]
    samples = [
        Sample(response=response, metadata={"instruction_id_list": row["instruction_id_list"], "kwargs": row["kwargs"]})
        for row, response in answers
        if row is not None
    ]
    found = grade("ifbench", samples)
    assert len(samples) == 293
    assert sum(score.value == 1.0 for score in found if isinstance(score, Scored)) == 83
    assert all(isinstance(score, Scored) for score in found)


def test_every_public_row_can_be_graded(data: Callable[[str], list[dict[str, Any]]]) -> None:
    for path in ("ifbench/IFBench_test.jsonl", "ifeval/input_data.jsonl"):
        for row in data(path):
            asked = instructions(row)
            assert len(followed("It is so.", asked)) == len(row["instruction_id_list"])
            assert json.dumps(asked)
