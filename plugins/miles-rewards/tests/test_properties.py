"""What must hold of any answer: white space, spelling and the order of comparing change nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_core.samples import Invalid, Sample, Scored
from miles_rewards.f1 import f1, words
from miles_rewards.gpqa import grade as grade_choice
from miles_rewards.mathematics.algebra import algebraic
from miles_rewards.mathematics.comparison import compare_cheaply

NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.decimals(-1000, 1000, places=3).map(str),
    st.fractions(-50, 50, max_denominator=50).map(
        lambda v: f"\\frac{{{v.numerator}}}{{{v.denominator}}}" if v.denominator > 1 else f"{v}"
    ),
)
TUPLES = st.lists(NUMBERS, min_size=2, max_size=4).map(lambda parts: "(" + ",".join(parts) + ")")
SETS = st.lists(NUMBERS, min_size=2, max_size=4, unique=True).map(lambda parts: "\\{" + ",".join(parts) + "\\}")
ANSWERS = st.one_of(NUMBERS, TUPLES, SETS)
SPACES = st.sampled_from(["", " ", "  ", "\t", "\n", "~", "\\,", "\\ ", "\\quad "])


@given(ANSWERS)
def test_an_answer_equals_itself(answer: str) -> None:
    assert compare_cheaply(answer, answer) == Scored(1.0)


@given(NUMBERS, NUMBERS)
def test_numbers_are_equal_both_ways_round(one: str, other: str) -> None:
    assert compare_cheaply(one, other) == compare_cheaply(other, one)


@given(ANSWERS, SPACES, SPACES, ANSWERS)
def test_outer_and_inner_white_space_means_nothing(answer: str, before: str, after: str, other: str) -> None:
    spaced = f"{before}{answer.replace(',', f',{after}')}{after}"
    assert compare_cheaply(spaced, answer) == Scored(1.0)
    assert compare_cheaply(spaced, other) == compare_cheaply(answer, other)


@given(
    ANSWERS,
    st.sampled_from(["${}$", "\\({}\\)", "{{{}}}", "{}.", "\\displaystyle {}", "**{}**"]),
)
def test_dress_means_nothing(answer: str, dress: str) -> None:
    assert compare_cheaply(dress.format(answer), answer) == Scored(1.0)


@given(SETS, st.randoms())
def test_sets_have_no_order(answer: str, shuffler: random.Random) -> None:
    parts = answer[2:-2].split(",")
    shuffler.shuffle(parts)
    assert compare_cheaply("\\{" + ", ".join(parts) + "\\}", answer) == Scored(1.0)


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=4), st.integers(0, 3))
def test_tuples_differ_in_every_part(parts: list[int], place: int) -> None:
    other = [*parts]
    other[place % len(parts)] += 1
    assert compare_cheaply(str(tuple(parts)), str(tuple(other))) == Scored(0.0)
    assert compare_cheaply(str(tuple(parts)), str([*parts])) == Scored(0.0)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=3), st.randoms())
def test_polynomials_are_compared_by_value(coefficients: list[int], shuffler: random.Random) -> None:
    terms = [f"({c})x^{{{n + 1}}}" for n, c in enumerate(coefficients)]
    shuffled = shuffler.sample(terms, len(terms))
    assert algebraic("+".join(shuffled), "+".join(terms))
    assert algebraic("+".join(terms), "+".join(shuffled))
    assert not algebraic("+".join([*terms, "x"]), "+".join(terms))


@given(st.text(max_size=60), st.text(max_size=60))
def test_f1_is_symmetric_and_bounded(one: str, other: str) -> None:
    score = f1(words(one), words(other))
    assert 0 <= score <= 1
    assert score == pytest.approx(f1(words(other), words(one)))
    assert f1(words(one), words(one)) == float(bool(words(one)))


@given(st.sampled_from("ABCDEFGH"), st.text(alphabet="abc .,\n", max_size=40), SPACES)
def test_a_last_statement_decides(letter: str, before: str, space: str) -> None:
    sample = Sample(response=f"{before}\nThe answer is ({letter}){space}", label=letter)
    assert grade_choice(sample) == Scored(1.0, f"chose {letter}")


@given(st.text(max_size=200))
def test_any_text_is_compared_or_refused(text: str) -> None:
    for verdict in (compare_cheaply(text, "\\sqrt{2}"), compare_cheaply("\\sqrt{2}", text)):
        assert verdict is None or isinstance(verdict, Scored | Invalid)
