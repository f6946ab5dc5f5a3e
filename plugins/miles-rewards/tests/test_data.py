"""Public data sets: every gold answer equals itself, and none equals another row's different answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from miles_core.samples import Sample, Score, Scored, Status
from miles_rewards.mathematics.boxed import last_boxed

Data = Callable[[str], list[dict[str, Any]]]
Grade = Callable[..., list[Score]]
FORMS = {"math": "\\boxed{%s}", "deepscaler": "thoughts</think>\\boxed{%s}", "boxed_dapo": "\\boxed{%s}", "dapo": "Answer: %s"}


def check(grade: Grade, reward: str, answers: list[str], labels: list[str], expected: float) -> None:
    """Every answer, in the form that the reward expects, gets the expected score."""
    samples = [Sample(response=FORMS[reward] % answer, label=label) for answer, label in zip(answers, labels, strict=True)]
    scores = grade(reward, samples)
    wrong = [(a, b, s) for a, b, s in zip(answers, labels, scores, strict=True) if correct(s) != expected]
    assert not wrong, f"{len(wrong)} of {len(answers)}: {wrong[:5]}"


def correct(score: Score) -> object:
    if not isinstance(score, Scored):
        return type(score).__name__
    return score.value if isinstance(score.value, float) else score.value["acc"]  # type: ignore[index]


@pytest.mark.parametrize("reward", sorted(FORMS))
def test_gsm8k(reward: str, data: Data, grade: Grade) -> None:
    texts = [str(row["answer"]) for row in data("gsm8k/test.jsonl")]
    gold = [text.rpartition("####")[2].strip() for text in texts]
    check(grade, reward, gold, texts, 1.0)
    others = [
        next(g for g in gold[i + 1 :] + gold if float(g.replace(",", "")) != float(x.replace(",", ""))) for i, x in enumerate(gold)
    ]
    check(grade, reward, others, texts, 0.0)


@pytest.mark.parametrize("reward", ["math", "deepscaler", "boxed_dapo"])
def test_math_gold_equals_itself(reward: str, data: Data, grade: Grade) -> None:
    rows = data("math/math_test_5000.jsonl")
    for row in rows:
        row["answer"] = last_boxed(row["solution"])
    gold = [str(row["answer"]) for row in rows if row["answer"]]
    check(grade, reward, gold, gold, 1.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_math_gold_is_not_that_of_the_next_row(data: Data, grade: Grade) -> None:
    """Of 500 neighbours two are equal: 2 and 2, and 5 and x=5."""
    gold = [str(row["answer"]) for row in data("math/math500.jsonl")]
    pairs = [(a, b) for a, b in zip(gold, gold[1:] + gold[:1], strict=True) if a != b and (a, b) != ("5", "x=5")]
    check(grade, "math", [a for a, _ in pairs], [b for _, b in pairs], 0.0)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "spaces": lambda a: f"  {a} ",
    "dollars": lambda a: f"${a}$",
    "parentheses": lambda a: f"\\({a}\\)",
    "dfrac": lambda a: a.replace("\\frac", "\\dfrac"),
    "tfrac": lambda a: a.replace("\\frac", "\\tfrac"),
    "full stop": lambda a: f"{a}.",
    "left and right": lambda a: a.replace("(", "\\left(").replace(")", "\\right)") if "\\left" not in a else a,
    "spaces after commas": lambda a: a.replace(",", ", ") if "(" in a else a,
    "assignment": lambda a: a if "=" in a or "\\in" in a or "\\text" in a else f"x = {a}",
    "minus": lambda a: a.replace("-", "−"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_math_gold_in_other_spellings(spelling: str, data: Data, grade: Grade) -> None:
    gold = [str(row["answer"]) for row in data("math/math500.jsonl")]
    check(grade, "math", [SPELLINGS[spelling](answer) for answer in gold], gold, 1.0)


@pytest.mark.parametrize(
    "form", ["The answer is ({letter}).", "Answer: {letter}", "\\boxed{{{letter}}}", "It is {letter}", "{text}"]
)
def test_mmlu_stem(form: str, data: Data, grade: Grade) -> None:
    rows = data("mmlu_stem/test.jsonl")
    if form == "{text}":
        # A text decides only where it is no letter or part of another's.
        rows = [row for row in rows if all(str(option).count(" ") > 1 for option in row["options"])]
        rows = [
            row
            for row in rows
            if not any(word in " ".join(map(str, row["options"])) for word in ("Statement", " A", " B", " C", " D", "'"))
        ]
    assert len(rows) > 100
    for shift, expected in ((0, 1.0), (1, 0.0)):
        samples = []
        for row in rows:
            place = ("ABCD".index(row["answer"]) + shift) % 4
            response = form.format(letter="ABCD"[place], text=row["options"][place])
            metadata = {"choices": row["options"], "correct_letter": row["answer"]}
            samples.append(Sample(response=response, label=row["answer"], metadata=metadata, status=Status.COMPLETED))
        wrong = [
            (s.response, s.metadata, g) for s, g in zip(samples, grade("gpqa", samples), strict=True) if correct(g) != expected
        ]
        assert not wrong, f"{len(wrong)} of {len(rows)}: {wrong[:4]}"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_gsm8k_solutions_of_models(data: Data, grade: Grade) -> None:
    """5,276 solutions with the verdicts of the data set's authors, who read the number after ``A:``."""
    samples, theirs = [], []
    for row in data("model_outputs/gsm8k_example_model_solutions.jsonl"):
        for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            solution = row[name]["solution"]
            label = row["ground_truth"].rpartition("A: ")[2]
            samples.append(Sample(response=solution.replace("\nA:", "\nAnswer:"), label=label, metadata={"whole": solution}))
            theirs.append(float(row[name]["is_correct"]))
    ours = grade("dapo", samples)
    differ = [(s.response[-40:], s.label, t, correct(o)) for s, t, o in zip(samples, theirs, ours, strict=True) if correct(o) != t]
    assert not differ, f"{len(differ)} of {len(samples)}: {differ[:20]}"
