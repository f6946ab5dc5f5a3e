"""Grading of ordinary outputs: reward ``math`` against loops over math-verify and over SymPy in one process.

Reads the folder that ``MILES_TEST_DATA`` names; without it there is nothing to measure. All graders see the same texts in the same
process, one after the other, several times; the median counts. Ours is measured as a run meets it: a new reward whose worker
processes still have to start, and the same with them running but nothing remembered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import record
from latex2sympy2_extended import latex2sympy
from math_verify import parse, verify
from sympy import simplify

from miles_core.config import RewardOptions
from miles_core.options import Config
from miles_core.samples import Sample, Scored
from miles_rewards.mathematics.boxed import label_answer, last_boxed
from miles_rewards.mathematics.reward import create
from miles_rewards.rule import Question

Pairs = list[tuple[str, str]]


def qwen(data: Path) -> tuple[Pairs, list[float]]:
    """800 responses of Qwen2.5-Math to 100 problems, with labels and the verdicts of its authors' grader."""
    rows = read(data / "model_outputs" / "qwen25_math_cot_100x8.jsonl")
    pairs = [(response, str(row["gt"])) for row in rows for response in row["code"]]
    return pairs, [float(verdict) for row in rows for verdict in row["score"]]


def gold(data: Path) -> tuple[Pairs, list[float]]:
    """The 500 solutions of MATH-500 against their answers, and against those of the next problem."""
    rows = read(data / "math" / "math500.jsonl")
    answers = [row["answer"] for row in rows]
    pairs = list(zip([row["solution"] for row in rows] * 2, answers + answers[1:] + answers[:1], strict=True))
    return pairs, [1.0] * 500 + [float(a == b) for a, b in zip(answers, answers[1:] + answers[:1], strict=True)]


def read(file: Path) -> list[dict]:
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def by_math_verify(pairs: Pairs) -> list[float]:
    """What its README does: parse both, verify."""
    return [float(verify(parse(f"${label}$"), parse(response))) for response, label in pairs]


def by_sympy(pairs: Pairs) -> list[float]:
    """Every boxed answer and its label parsed, and their difference simplified."""
    verdicts = []
    for response, label in pairs:
        try:
            difference = latex2sympy(last_boxed(response) or "") - latex2sympy(label)
            verdicts.append(float(simplify(difference) == 0))
        except Exception:
            # Words, intervals and sets have no difference.
            verdicts.append(float(last_boxed(response) == label))
    return verdicts


async def by_us(pairs: Pairs, workers: int) -> tuple[list[float], float, float, int]:
    """Verdicts, seconds with starting the workers, seconds without, and how many distinct pairs needed algebra."""
    samples = [Sample(response=response, label=label) for response, label in pairs]
    config = Config.of(RewardOptions(reward_workers=workers))
    reward = create(config)
    started = time.perf_counter()
    scores = await reward.score(samples)
    cold = time.perf_counter() - started
    other = create(config)
    # The same processes, with nothing remembered of these pairs.
    assert reward.comparison is not None
    assert other.comparison is not None
    other.comparison.pool = reward.comparison.pool
    started = time.perf_counter()
    await other.score(samples)
    warm = time.perf_counter() - started
    cheap = create(Config([]))
    asked = {(q.answer, q.label) for s in samples if isinstance(q := cheap.now(s), Question)}
    await reward.close()
    return [score.value if isinstance(score, Scored) else -1.0 for score in scores], cold, warm, len(asked)


def timed(function: Callable[[Pairs], list[float]], pairs: Pairs) -> tuple[list[float], float]:
    started = time.perf_counter()
    return function(pairs), time.perf_counter() - started


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    words = parser.parse_args()
    if not os.environ.get("MILES_TEST_DATA"):
        print("MILES_TEST_DATA names no folder of data sets: nothing to measure")
        return
    logging.disable(logging.CRITICAL)
    data = Path(os.environ["MILES_TEST_DATA"])
    figures: dict[str, object] = {}
    for name, load in (("Qwen2.5-Math, 800 responses", qwen), ("MATH-500, 1,000 solutions", gold)):
        pairs, expected = load(data)
        pairs = [(response, label_answer(label)) for response, label in pairs]
        seconds: dict[str, list[float]] = {"math-verify": [], "SymPy": [], "math": [], "math, processes running": []}
        for _ in range(words.repeats):
            theirs, took = timed(by_math_verify, pairs)
            seconds["math-verify"].append(took)
            plain, took = timed(by_sympy, pairs)
            seconds["SymPy"].append(took)
            ours, cold, warm, asked = asyncio.run(by_us(pairs, words.workers))
            seconds["math"].append(cold)
            seconds["math, processes running"].append(warm)
        middle = {grader: statistics.median(times) for grader, times in seconds.items()}
        figures[name] = {
            **{f"{grader} (grades/s)": round(len(pairs) / took) for grader, took in middle.items()},
            "times as fast as math-verify": round(middle["math-verify"] / middle["math"], 1),
            "times as fast as math-verify, processes running": round(middle["math-verify"] / middle["math, processes running"], 1),
            "times as fast as SymPy": round(middle["SymPy"] / middle["math"], 1),
            "pairs that needed algebra": asked,
            **{
                f"disagreements of {grader} with the labels": sum(a != b for a, b in zip(verdicts, expected, strict=True))
                for grader, verdicts in (("math", ours), ("math-verify", theirs), ("SymPy", plain))
            },
        }
    notes = f"{words.workers} worker processes, median of {words.repeats}; the other graders run in one process"
    record.save("rewards", figures, notes)


if __name__ == "__main__":
    main()
