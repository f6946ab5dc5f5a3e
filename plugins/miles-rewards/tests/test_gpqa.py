"""Reward gpqa: which option a response chooses, and which is right."""

from __future__ import annotations

from typing import Any

import pytest

from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Scored
from miles_rewards.gpqa import create, grade

CAPITALS = {"choices": ["Paris", "London", "Berlin", "Rome"]}
CASES: list[tuple[str, Any, dict[str, Any], float]] = [
    ("Answer: A", "A", {}, 1),
    ("answer: a", "A", {}, 1),
    ("The answer is (B)", "B", {}, 1),
    ("The answer depends on D... so finally A", "A", {}, 1),
    ("answer is A. Actually the answer is B", "B", {}, 1),
    ("He chose Option A, but later Option B", "B", {}, 1),
    ("A B C D", "D", {}, 1),
    ("<think>A</think>The correct option is C", "C", {}, 1),
    ("\\boxed{C}", "C", {}, 1),
    ("Answer: I am not sure", "A", {}, 0),
    ("It is Paris.", "A", CAPITALS, 1),
    ("it is london", "Paris", CAPITALS, 0),
    ("Answer: A", 0, CAPITALS, 1),
    ("Answer: C", 2.0, {}, 1),
    ("Answer: B", "ignored", {"correct_letter": "b"}, 1),
    ("Answer: J", "J", {}, 1),
    ("Answer: X", "X", {"valid_letters": ["X", "Y", "Z"]}, 1),
    ("", "A", {}, 0),
    ("The answer is A or B", "A", {}, 0),
    ("The answer is not A, it is B.", "B", {}, 1),
    ("Option A is wrong. Option B fits; option C is incorrect.", "B", {}, 1),
    ("A careful analysis shows nothing", "A", {}, 0),
    ("I think it is B", "B", {}, 1),
    ("The answer is **C**.", "C", {}, 1),
    ("**Answer:** D", "D", {}, 1),
    ("The final answer is $\\boxed{\\text{(D)}}$", "D", {}, 1),
    ("Therefore, B is the correct answer.", "B", {}, 1),
    ("answer (c)", "C", {}, 1),
    ("The answer is a mystery", "A", {}, 0),
    ("The answer is C because A is wrong", "C", {}, 1),
    ("The correct answer is option D: the sun", "D", {}, 1),
    ("not London but Paris", "A", CAPITALS, 1),
    ("The capital is Parisian", "A", CAPITALS, 0),
    ("The answer is London", "B", CAPITALS, 1),
    ("Answer: B) London", "B", CAPITALS, 1),
    ("Answer: A is the best", "A", {}, 1),
    ("The correct choice: (A)", "A", {}, 1),
    ("So, the answer is\n\nB", "B", {}, 1),
    ("Vitamin C deficiency. Answer: B", "B", {}, 1),
    ("The right answer would be D", "D", {}, 1),
    ("answer = B", "B", {}, 1),
    ("The answer is I.", "I", {"valid_letters": ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"]}, 1),
    ("Answer: A because it fits", "A", {}, 1),
    ("B is not correct. The answer must be A.", "A", {}, 1),
    ("The answer is B's converse... D", "D", {}, 1),
    ("deflected in the -x-direction", "B", {"choices": ["deflected in the +x-direction", "deflected in the -x-direction"]}, 1),
    ("F_B = 4F_A", "B", {"choices": ["F_B = 2F_A", "F_B = 4F_A"]}, 1),
    ("It is x - 1.", "A", {"choices": ["x + 1", "x - 1"]}, 0),
    ("Neither Berlin nor Rome: Paris", "A", CAPITALS, 1),
    ("New York", "B", {"choices": ["York", "New York"]}, 1),
    ("It is New York", "A", {"choices": ["York", "New York"]}, 0),
    ("Answer: B\n\nLet me check A again. Answer: C", "C", {}, 1),
    ("(D)", "D", {}, 1),
    ("Both A and C", "C", {}, 1),
]
"""Response, label, metadata, score; each judged by hand."""


@pytest.mark.parametrize(("response", "label", "metadata", "expected"), CASES)
def test_choices(response: str, label: Any, metadata: dict[str, Any], expected: float) -> None:
    assert grade(Sample(response=response, label=label, metadata=metadata)).value == expected


@pytest.mark.parametrize(
    ("label", "metadata"),
    [
        (None, {}),
        ("", {}),
        ("  ", {}),
        (True, {}),
        ([1], {}),
        (9, {}),
        (-1, CAPITALS),
        (4, CAPITALS),
        (1.5, CAPITALS),
        ("A", {"correct_letter": "E", **CAPITALS}),
        ("A", {"valid_letters": "XYZ"}),
        ("A", {"valid_letters": 7}),
        ("A", {"valid_letters": ["AB"]}),
    ],
)
def test_a_question_without_a_right_option_has_no_score(label: Any, metadata: dict[str, Any]) -> None:
    score = create(Config([])).now(Sample(response="Answer: A", label=label, metadata=metadata))
    assert isinstance(score, Invalid), score


def test_the_choice_is_told() -> None:
    assert grade(Sample(response="Answer: B", label="A")) == Scored(0.0, "chose B")


@pytest.mark.parametrize(("label", "expected"), [("the sun", 1.0), ("sun", 1.0), ("the moon", 0.0)])
def test_a_text_without_choices_is_looked_for(label: str, expected: float) -> None:
    assert grade(Sample(response="it must be the sun.", label=label)).value == expected
