"""Hostile responses: every reward ends in bounded time and memory, and what cannot be graded is a failure."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from miles_core.config import RewardOptions
from miles_core.samples import Invalid, Sample, Score, Scored, Status, Timeout
from miles_rewards import plugin

POWERS = {
    "tower": "9**9**9",
    "tower of tens": "10**10**10",
    "LaTeX tower": "9^{9^{9}}",
    "factorial": "(10**7)!",
    "factorials": "((9!)!)!",
    "float": "1e9999999",
    "small float": "1e-9999999",
    "power": "10^{9999999}",
    "brackets": "(" * 5000 + "1" + ")" * 5000,
    "braces": "{" * 5000 + "1" + "}" * 5000,
    "letters": "a" * 200_000,
    "digits": "1" * 200_000,
    "surrogate": "\ud800",
}
"""Answers that no grader should be asked to work out."""

ALGEBRA = {
    "expansion": "(x+1)**2000",
    "powers of powers": "((10^{9999})^{9999})^{9999}",
    "sum": r"\sum_{n=1}^{9999} \frac{1}{(n^{99}+1)^{99}}",
    "unicode tower": "9⁹⁹⁹⁹⁹⁹⁹",
    "roots": r"\sqrt{" * 40 + "x" + "}" * 40,
    "matrix": r"\begin{pmatrix}" + " & ".join(["x^2"] * 100) + r"\end{pmatrix}",
    "product": "*".join(f"(x+{n})" for n in range(100)),
}
"""Answers that get as far as a worker process, which may decide, give up, or be killed."""

NOISE = {
    "spaces after answer": "answer" + " " * 100_000,
    "spaces and a letter": "the answer is" + " " * 100_000 + "B",
    "answers": "answer: " * 50_000,
    "options": "option is " * 50_000,
    "stars": "answer " + "*" * 100_000,
    "boxes": r"\boxed{" * 50_000,
    "closed boxes": r"\boxed{1}" * 50_000,
    "thoughts": "<think>" * 50_000 + "</think>" * 50_000,
    "letters alone": "A " * 100_000,
    "correct": "A is correct " * 30_000,
    "newlines": "\n" * 300_000,
    "equals": "Answer:" + "=" * 100_000,
    "words": "a b c d " * 50_000,
    "surrogates": "\ud800\udfff" * 50_000,
    "zeros": "\x00" * 100_000,
    "one long word": "answer" * 50_000,
}
"""Responses that are no answers, but long."""

NAMES = sorted(record.name for record in plugin.miles_reward() if record.name != "sum")
OPTIONS = RewardOptions(reward_timeout=1.5)


@pytest.mark.parametrize("name", NOISE)
def test_no_response_takes_long_to_read(name: str, grade: Callable[..., list[Score]]) -> None:
    for reward in NAMES:
        for label in ("B", "42"):
            began = time.perf_counter()
            (score,) = grade(reward, [Sample(response=NOISE[name], label=label, status=Status.COMPLETED)])
            assert time.perf_counter() - began < 15, reward
            assert isinstance(score, Scored | Invalid), (reward, score)


@pytest.mark.parametrize("label", [None, "", [1], {"a": 1}, True, 1 << 5000, "\ud800", b"x", float("nan"), NOISE["boxes"]])
@pytest.mark.parametrize("response", [None, "\ud800", "", "\\boxed{\ud800}", 3])
def test_nothing_makes_a_reward_raise(response: object, label: object, grade: Callable[..., list[Score]]) -> None:
    for reward in NAMES:
        sample = Sample(response=response, label=label, metadata={"choices": [None, 3], "valid_letters": 7})  # type: ignore[arg-type]
        (score,) = grade(reward, [sample])
        assert isinstance(score, Scored | Invalid), reward
        if not isinstance(response, str):
            assert isinstance(score, Invalid), reward


@pytest.mark.parametrize("name", POWERS)
@pytest.mark.parametrize(("reward", "form"), [("math", "{}"), ("deepscaler", "</think>{}"), ("boxed_dapo", "{}")])
def test_answers_that_cannot_be_worked_out_are_failures(
    reward: str, form: str, name: str, grade: Callable[..., list[Score]]
) -> None:
    began = time.perf_counter()
    answer, other = f"\\boxed{{{POWERS[name]}}}", "\\boxed{\\sqrt{2}+x}"
    samples = [
        Sample(response=form.format(answer), label="\\sqrt{2}+x"),
        Sample(response=form.format(other), label=POWERS[name]),
        Sample(response=form.format("\\boxed{1+1}"), label="2"),
    ]
    first, second, last = grade(reward, samples)
    assert isinstance(first, Invalid), first
    assert isinstance(second, Invalid), second
    assert isinstance(last, Scored)
    assert time.perf_counter() - began < 15


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ALGEBRA)
def test_algebra_without_end_is_cut_off(name: str, grade: Callable[..., list[Score]]) -> None:
    began = time.perf_counter()
    samples = [
        Sample(response=f"\\boxed{{{ALGEBRA[name]}}}", label="\\sqrt{2}+x"),
        Sample(response="\\boxed{\\sqrt{2}+x}", label=ALGEBRA[name]),
        Sample(response="\\boxed{x+\\sqrt{2}}", label="\\sqrt{2}+x"),
    ]
    first, second, last = grade("math", samples, OPTIONS)
    assert isinstance(first, Timeout | Invalid) or first == Scored(0.0), first
    assert isinstance(second, Timeout | Invalid) or second == Scored(0.0), second
    assert last == Scored(1.0)
    assert time.perf_counter() - began < 40


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_bounded() -> None:
    """Everything above in a process of its own, whose memory and whose workers' are measured."""
    script = (
        "import asyncio, json, re, resource, sys\n"
        "from miles_core.config import RewardOptions\n"
        "from miles_core.options import Config\n"
        "from miles_core.samples import Sample\n"
        "from miles_rewards.mathematics.reward import create\n"
        "async def main():\n"
        "    reward = create(Config.of(RewardOptions(reward_timeout=1.5)))\n"
        "    answers = json.load(sys.stdin)\n"
        "    samples = [Sample(response='\\\\boxed{%s}' % a, label='\\\\sqrt{2}+x') for a in answers]\n"
        "    samples += [Sample(response='\\\\boxed{\\\\sqrt{2}+x}', label=a) for a in answers]\n"
        "    scores = await reward.score(samples)\n"
        "    await reward.close()\n"
        "    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        # Linux lets ru_maxrss of a new process begin at its parent's peak, which is pytest's: the high-water mark is its own.
        "    own = int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "    print(json.dumps([len(scores), own, workers]))\n"
        "asyncio.run(main())\n"
    )
    answers = [*POWERS.values(), *ALGEBRA.values(), *NOISE.values()]
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(answers), capture_output=True, text=True, timeout=170, check=True
    )
    count, own, workers = json.loads(done.stdout)
    assert count == 2 * len(answers)
    assert own << 10 < 512 << 20
    assert workers << 10 < 3 << 29
