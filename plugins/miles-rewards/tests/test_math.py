"""Reward math: what is decided without processes, and the table of verdicts with them."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.mathematics.boxed import label_answer, last_boxed
from miles_rewards.mathematics.number import parse_number
from miles_rewards.mathematics.reward import create
from miles_rewards.rule import Question
from miles_rewards.ungradable import Ungradable

Grade = Callable[[list[Sample]], list[Score]]
Data = Callable[[str], list[dict[str, Any]]]

# Answer, label, verdict, as the graders of MATH and PRM800K decide.
AS_THE_REFERENCE = r"""
42 | 42 | 1
42.0 | 42 | 1
1,234 | 1234 | 1
12,34 | 1234 | 0
\frac{1}{2} | 0.5 | 1
0.75 | \frac{3}{4} | 1
\frac{2}{4} | \frac{1}{2} | 0
2/4 | 1/2 | 0
\frac{2}{4} | 0.5 | 1
\dfrac{3}{4} | 3/4 | 1
1/3 | 0.3333 | 0
\sqrt{8} | 2\sqrt{2} | 1
x^2+2x+1 | (x+1)^2 | 1
x=5 | 5 | 1
abc=5 | 5 | 0
(1,2) | (1, 2) | 1
(2,1) | (1,2) | 0
[1,2) | (1,2) | 0
1,2 | (1,2) | 0
1,2 | 2,1 | 0
50\% | 50 | 1
0.5 | 50% | 0
100 \text{ meters} | 100 | 1
90^\circ | 90 | 1
7 3/4 | 31/4 | 1
\text{Yes} | yes | 1
6 \times 7 | 42 | 0
1e3 | 1000 | 1
x+y | y+x | 1
\text{(A)} | A | 1
0 | 0 | 1
3 \text{ or } 5 | 3,5 | 1
\boxed{42} | 42 | 1
42 | \boxed{42} | 1
(3, \frac{\pi}{2}) | \left( 3, \frac{\pi}{2} \right) | 1
"""

# Where those graders err, or lose meaning.
UNLIKE_THE_REFERENCE = r"""
\frac{x+2}{7} | x+2/7 | 0
\sqrt[3]{2} | \sqrt{2} | 0
3 \text{ or } 5 | 3 | 0
10^6 | 1000000 | 1
5 million | 5000000 | 1
2^{10} | 1024 | 1
a+b+c | c+b+a | 1
1/2 | 2/4 | 1
\{2,1\} | \{1,2\} | 1
"""

FURTHER = r"""
√2 | \sqrt{2} | 1
2√3 | 2\sqrt{3} | 1
√(2) | \sqrt{2} | 1
∛2 | \sqrt[3]{2} | 1
√8 | 2√2 | 1
√2 | √3 | 0
½ | 0.5 | 1
2½ | 2.5 | 1
x² | x^2 | 1
x²+1 | x^{2}+1 | 1
5² | 25 | 1
10⁶ | 1000000 | 1
10^{-3} | 0.001 | 1
π/2 | \frac{\pi}{2} | 1
2π | 2\pi | 1
2 pi | 2\pi | 1
pi | \pi | 1
infinity | \infty | 1
x ≤ 3 | x \le 3 | 1
x \leq 3 | x \le 3 | 1
x ≥ 3 | x \le 3 | 0
x < 3 | x > 3 | 0
x \ne 2 | x \neq 2 | 1
30° | 30 | 1
30 degrees | 30 | 1
\$1,234.00 | 1234 | 1
1234 dollars | 1234 | 1
12 cm | 12 | 1
12 cm^2 | 12 | 1
12\text{ cm}^2 | 12\text{ cm}^2 | 1
5 \text{ or } 3 | 3, 5 | 0
3, 5 | 3 and 5 | 1
3 | 3 \text{ or } 5 | 0
3,5 | 3 | 0
-5 | 5 | 0
+5 | 5 | 1
005 | 5 | 1
5. | 5 | 1
.5 | 0.5 | 1
-.5 | -\frac12 | 1
-\frac{1}{2} | -0.5 | 1
\frac{-1}{-2} | 1/2 | 1
\frac{1}{3} | 0.33 | 0
0.333333 | \frac{1}{3} | 0
1e-3 | 0.001 | 1
1.5 \times 10^3 | 1500 | 1
1.5 × 10^3 | 1500 | 1
1.5 \cdot 10^{-3} | 0.0015 | 1
2^10 | 1024 | 1
1024 | 2^{10} | 1
2^{100} | 1267650600228229401496703205376 | 1
2^{100} | 2^{101} | 0
10! | 3628800 | 0
\binom{5}{2} | 10 | 0
\log 1 | 0 | 0
e^{2x} | (e^x)^2 | 1
\sin^2 x+\cos^2 x | 1 | 0
(x-1)(x+1) | x^2-1 | 1
x^2-1 | x^2+1 | 0
\frac{x+2}{7} | \frac{x}{7}+\frac{2}{7} | 1
\frac{x+2}{7} | (x+2)/7 | 1
x+\frac{2}{7} | x+2/7 | 1
\sqrt[3]{8} | 2 | 0
\sqrt{4} | 2 | 0
\sqrt{16} | 4 | 0
2^{1/2} | \sqrt{2} | 1
\frac{1}{\sqrt{2}} | \frac{\sqrt{2}}{2} | 1
\frac{1}{1+\sqrt{2}} | \sqrt{2}-1 | 1
(1, 2] | (1,2] | 1
(1,2) | [1,2] | 0
(-\infty, 3) | (-\infty,3) | 1
\{1, 2, 3\} | \{3, 2, 1\} | 1
\{1,2\} | \{1,2,3\} | 0
\emptyset | \varnothing | 1
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{pmatrix}1&2\\3&4\end{pmatrix} | 1
\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix} | \begin{pmatrix}1&2\\3&4\end{pmatrix} | 1
3+4i | 4i+3 | 1
3+4i | 3-4i | 0
\text{A} | A | 1
(A) | A | 1
A | B | 0
\text{(B)} | \text{B} | 1
\textbf{(C)} | C | 1
Yes | yes | 1
\text{yes} | \text{no} | 0
Monday | Tuesday | 0
\text{Monday} | monday | 1
\text{Alice and Bob} | \text{Alice and Bob} | 1
y = 2x+3 | 2x+3 | 1
y=2x+3 | y = 3+2x | 1
2x+3=y | y=2x+3 | 1
x=1,y=2 | (1,2) | 0
f(x)=x^2 | x^2 | 1
f(x) = x^2 | f(x)=x^2 | 1
x = 5 | y = 5 | 0
12:30 | 12:30 | 1
1:2 | 1:2 | 1
1:2 | 2:1 | 0
50\% | 0.5 | 0
50% | 50\% | 1
0.50 | 0.5 | 1
5.0 | 5 | 1
5.10 | 5.1 | 1
10_2 | 10_2 | 1
101_2 | 101_3 | 0
1{,}234{,}567 | 1234567 | 1
1\,234 | 1234 | 1
1 234 | 1234 | 1
123 456 | 123,456 | 1
12 34 | 1234 | 0
7\frac{3}{4} | \frac{31}{4} | 1
7\frac{3}{4} | 7.75 | 1
\frac{3}{4}7 | 7.75 | 0
\frac{21}{4} | 5\frac14 | 1
3\sqrt{2} | \sqrt{18} | 1
\left(\frac{1}{2}\right)^3 | \frac{1}{8} | 1
|x| | \left|x\right| | 1
\lfloor 2.5 \rfloor | 2 | 0
\frac{\pi}{6} | 30^\circ | 0
\ln 2 | \log 2 | 0
\ln(2) | \ln 2 | 1
\tan x | \frac{\sin x}{\cos x} | 1
a | b | 0
ab | ba | 1
a+b+c+d | d+c+b+a | 1
x^2y | yx^2 | 1
\infty | -\infty | 0
0 | -0 | 1
42 | 24 | 0
42 | 42.0001 | 0
1000000 | 1,000,000 | 1
1 million | 1000000 | 1
2.5 million | 2,500,000 | 1
3 thousand | 3000 | 1
\frac{4}{2} | 2 | 0
\frac{0}{5} | 0 | 0
x \in [1,2] | [1,2] | 1
x \in (0, \infty) | (0,\infty) | 1
(0,1) \cup (2,3) | (2,3) \cup (0,1) | 1
(0,1) \cup (2,3) | (0,1) \cup (2,4) | 0
\pm 2 | 2, -2 | 1
\pm 2 | -2, 2 | 1
\pm 2 | \pm 2 | 1
\pm 2 | 2 | 0
1 \pm \sqrt{3} | 1+\sqrt{3}, 1-\sqrt{3} | 1
\sqrt{2} | 1.41421356 | 0
\sqrt{2} | 1.414 | 0
e | 2.71828 | 0
3 apples | 3 oranges | 1
\text{3 hours} | 3 | 1
3 hours 20 minutes | 3 | 0
3\text{ hours } 20 \text{ minutes} | 3 | 0
6\text{ feet } 2 \text{ inches} | 62 | 0
$5$ | 5 | 1
\(5\) | 5 | 1
\[5\] | 5 | 1
**5** | 5 | 1
5\% | 5 | 1
五 | 5 | 0
５ | 5 | 1
x^{2}+2x+1 | (x+1)^2 | 1
(x+1)^{20} | (1+x)^{20} | 1
n(n+1)/2 | \frac{n^2+n}{2} | 1
2n | n+n | 1
\frac{a}{b} | \frac{b}{a} | 0
\dfrac{\sqrt{3}}{3} | \frac{1}{\sqrt{3}} | 1
-\sqrt{3} | \sqrt{3} | 0
0.1+0.2 | 0.3 | 1
\text{no solution} | \text{No solution} | 1
none | \text{None} | 1
5 apples | 5 | 1
5 \text{ cm}^2 | 5 | 1
5 dozen | 5 | 0
5 \text{ or more} | 5 | 0
1, 234 | 1234 | 0
10{,}000 | 10000 | 1
10\,000 | 10000 | 1
1\!,234.50 | 1234.5 | 1
\$5.00 | 5 | 1
-\frac{1}{2} | \frac{-1}{2} | 1
-3 | 3 | 0
x^12 | x^{12} | 1
2e^{x} | 2\mathrm{e}^{x} | 1
\frac12 | 0.5 | 1
sqrt(2) | \sqrt2 | 1
2 sin x | 2 | 0
3x | 3 | 0
blue | red | 0
foo( | \sqrt{3} | 0
\frac{1}{0} | \sqrt{2} | 0
\{\sqrt{8},2\} | \{2,2\sqrt{2}\} | 1
(\sqrt{8},2) | (2\sqrt{2},3) | 0
\pi r^2 | r^2\pi | 1
(-\infty,1)\cup(2,3) | (2,3)\cup(-\infty,1) | 1
x \le 3 | 3 \ge x | 1
1\pm\sqrt{2} | 1\pm\sqrt{3} | 0
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{pmatrix}1&2\\3&5\end{pmatrix} | 0
"""


def rows(table: str) -> list[tuple[str, str, float]]:
    return [(a, b, float(c)) for a, b, c in (line.split(" | ") for line in table.strip().splitlines())]


def boxed(answer: str) -> str:
    return f"So the answer is \\boxed{{{answer}}}."


WITHOUT_PROCESSES = create(Config([]))


def grade_cheaply(response: object, label: object) -> Score | Question:
    return WITHOUT_PROCESSES.now(Sample(response=response, label=label))  # type: ignore[arg-type]


@pytest.fixture
def score(grade: Callable[..., list[Score]]) -> Callable[[list[Sample]], list[Score]]:
    return functools.partial(grade, "math")


def test_verdicts(score: Grade) -> None:
    table = rows(AS_THE_REFERENCE) + rows(UNLIKE_THE_REFERENCE) + rows(FURTHER)
    scores = score([Sample(response=boxed(answer), label=label) for answer, label, _ in table])
    wrong = [(row, got) for row, got in zip(table, scores, strict=True) if got != Scored(row[2])]
    assert not wrong


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\boxed{42}}", "42"),
        (r"\boxed {7}", "7"),
        (r"\boxed{}", ""),
        (r"\boxed 42", None),
        (r"\boxed{42", None),
        (r"\boxed{1} \boxed{42", None),
        (r"\fbox{42}", None),
        ("42", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("label", "answer"),
    [
        (0, "0"),
        (3.5, "3.5"),
        ("0", "0"),
        ("so \\boxed{1} or rather \\boxed{2}", "2"),
        ("48/2 = <<48/2=24>>24\nShe sold 24.\n#### 1,224", "1,224"),
        ("#### -5\n", "-5"),
    ],
)
def test_labels(label: object, answer: str) -> None:
    assert label_answer(label) == answer


@pytest.mark.parametrize("label", [None, "", "  ", "####", True, [1], {"a": 1}, "\\boxed{1", 1 << 5000])
def test_labels_that_state_nothing_are_no_score(label: object) -> None:
    with pytest.raises(Ungradable):
        label_answer(label)
    assert isinstance(grade_cheaply(boxed("1"), label), Invalid)


def test_integer_zero_is_a_label() -> None:
    assert grade_cheaply(boxed("0"), 0) == Scored(1.0)
    assert grade_cheaply(boxed("1"), 0) == Scored(0.0)


def test_no_box_is_wrong_not_ungradable() -> None:
    for response in ("42", "", "\\boxed 42", "x" * 500_000):
        assert grade_cheaply(response, "42") == Scored(0.0, "no box")


@pytest.mark.parametrize("label", ["$", "\\text{}", "\\frac{1}{"])
def test_a_label_that_cannot_be_read_is_no_score(label: str, score: Grade) -> None:
    (got,) = score([Sample(response=boxed("\\sqrt{2}"), label=label)])
    assert isinstance(got, Invalid)


def test_no_text_at_all_is_no_score() -> None:
    for response, label in ((None, "1"), (boxed("1"), None), (3, "1"), (b"x", "1")):
        assert isinstance(grade_cheaply(response, label), Invalid)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.one_of(st.text(max_size=80), st.integers(), st.floats(), st.none()))
def test_any_text_is_graded_or_refused(answer: str, label: object) -> None:
    got = grade_cheaply(f"\\boxed{{{answer}}}", label)
    assert isinstance(got, Scored | Invalid | Question)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789.,/^{}()[]\\eE+-*! x=", max_size=40), st.text(alphabet="0123456789.,/^{}", max_size=12))
def test_mathematical_noise_is_graded_or_refused(answer: str, label: str) -> None:
    got = grade_cheaply(f"\\boxed{{{answer}}}", label)
    assert isinstance(got, Scored | Invalid | Question)


@pytest.mark.parametrize(
    "unit", ["1", "5 aaa ", "aaa ", "{", "\\text{a}", "\\frac{", "^1", "1,", "\\sqrt", "5 million ", "sqrt(", "1 of ", " "]
)
def test_no_text_takes_long_to_read(unit: str) -> None:
    for text in ((unit * 1000)[:990], (unit * 1000)[:990] + "!", unit * 100_000):
        began = time.perf_counter()
        grade_cheaply(f"\\boxed{{{text}}}", "\\sqrt{7}")
        grade_cheaply("\\boxed{\\sqrt{7}}", text)
        assert time.perf_counter() - began < 15


@given(st.integers(-(10**12), 10**12))
def test_an_integer_equals_its_spellings(n: int) -> None:
    for spelling in (f"{n}", f"{n:,}", f"{n}.0", f"${n}$", f" {n} ", f"x = {n}", f"{n}\\%", f"\\text{{{n}}}"):
        assert grade_cheaply(boxed(spelling), n) == Scored(1.0), spelling
        assert grade_cheaply(boxed(spelling), n + 1) == Scored(0.0), spelling


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=999))
def test_fractions_are_exact(value: Fraction) -> None:
    number = parse_number(f"\\frac{{{value.numerator}}}{{{value.denominator}}}")
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize("split", ["train", "test"])
def test_gsm8k_gold_equals_itself(split: str, data: Data) -> None:
    for row in data(f"gsm8k/{split}.jsonl"):
        text = str(row["answer"])
        gold = text.rpartition("####")[2].strip()
        assert grade_cheaply(boxed(gold), text) == Scored(1.0), gold
        assert grade_cheaply(boxed(gold + "1"), text) == Scored(0.0), gold


def test_math500_solutions_are_right(data: Data) -> None:
    for row in data("math/math500.jsonl"):
        assert grade_cheaply(row["solution"], row["answer"]) == Scored(1.0), row["answer"]


@pytest.mark.slow
def test_agrees_with_another_grader_on_responses_of_a_model(data: Data, score: Grade) -> None:
    """800 responses graded by Qwen2.5-Math's evaluation; it calls 10000 wrong where the label spells it 10{,}000."""
    samples, theirs = [], []
    for row in data("model_outputs/qwen25_math_cot_100x8.jsonl"):
        for response, verdict in zip(row["code"], row["score"], strict=True):
            samples.append(Sample(response=response, label=row["gt"]))
            theirs.append(Scored(float(verdict)))
    ours = score(samples)
    differ = [(last_boxed(s.response), s.label) for s, a, b in zip(samples, ours, theirs, strict=True) if a != b]
    assert differ == [("10000", "10{,}000")]


def test_cheap_verdicts_start_no_process() -> None:
    async def run() -> None:
        reward = create(Config([]))
        assert await reward.score([Sample(response=boxed("42"), label="42"), Sample(response="no", label="1")]) == [
            Scored(1.0),
            Scored(0.0, "no box"),
        ]
        assert reward.comparison is not None
        assert reward.comparison.pool.pids() == []
        await reward.close()

    asyncio.run(run())


def test_grading_cheaply_loads_no_algebra() -> None:
    code = (
        "import sys\n"
        "from miles_core.options import Config\n"
        "from miles_core.samples import Sample\n"
        "from miles_rewards.mathematics.reward import create\n"
        "print(create(Config([])).now(Sample(response='\\\\boxed{1/2}', label='0.5')).value, "
        "sorted({'sympy', 'math_verify', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "1.0 []"
