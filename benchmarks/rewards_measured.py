"""Rewards on public data, through ``miles reward score``: agreement with the verdicts that the data has, and every disagreement.

Reads the folder that ``MILES_TEST_DATA`` names; without it there is nothing to measure. Each part is one call of the command in a
process of its own; its seconds hold the start of Python and of the workers. ``--show FILE`` writes the disagreements.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import record
from math_verify import parse, verify

Row = dict[str, Any]
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
SPELLINGS: dict[str, Callable[[str], str]] = {
    "white space around": lambda a: f"  {a} ",
    "$...$": lambda a: f"${a}$",
    "\\(...\\)": lambda a: f"\\({a}\\)",
    "\\[...\\]": lambda a: f"\\[{a}\\]",
    "\\dfrac": lambda a: a.replace("\\frac", "\\dfrac"),
    "\\tfrac": lambda a: a.replace("\\frac", "\\tfrac"),
    "full stop": lambda a: f"{a}.",
    "\\left( \\right)": lambda a: a if "\\left" in a else a.replace("(", "\\left(").replace(")", "\\right)"),
    "Unicode minus": lambda a: a.replace("-", "−"),
    "spaces after commas in brackets": lambda a: a.replace(",", ", ") if "(" in a else a,
}


def qwen(data: Path) -> tuple[list[Row], list[float | None]]:
    """800 responses of Qwen2.5-Math, with the verdicts of its authors' grader."""
    rows = read(data / "model_outputs" / "qwen25_math_cot_100x8.jsonl")
    given = [{"response": response, "label": row["gt"]} for row in rows for response in row["code"]]
    return given, [float(verdict) for row in rows for verdict in row["score"]]


def gsm8k(data: Path) -> tuple[list[Row], list[float | None]]:
    """5,276 solutions of four models, with the verdicts of the data set's authors. They state the answer as ``A: 18``."""
    given, verdicts = [], []
    for row in read(data / "model_outputs" / "gsm8k_example_model_solutions.jsonl"):
        for model in MODELS:
            response = row[model]["solution"].replace("\nA:", "\nAnswer:")
            given.append({"response": response, "label": row["ground_truth"].rpartition("A: ")[2]})
            verdicts.append(float(row[model]["is_correct"]))
    return given, verdicts


def gold(data: Path) -> tuple[list[Row], list[float | None]]:
    """MATH-500's answers in ten spellings against themselves."""
    answers = [row["answer"] for row in read(data / "math" / "math500.jsonl")]
    given = [
        {"response": f"\\boxed{{{spell(answer)}}}", "label": answer, "metadata": {"spelling": name}}
        for name, spell in SPELLINGS.items()
        for answer in answers
    ]
    return given, [1.0] * len(given)


def ifbench(data: Path) -> tuple[list[Row], list[float | None]]:
    """IFBench's published responses of a model. There are no published verdicts."""
    prompts = {" ".join(row["prompt"].split()): row for row in read(data / "ifbench" / "IFBench_test.jsonl")}
    given = []
    for row in read(data / "ifbench" / "sample_output.jsonl"):
        asked = prompts.get(" ".join(row["prompt"].split()))
        if asked is not None:
            metadata = {key: asked[key] for key in ("instruction_id_list", "kwargs")}
            given.append({"response": row["response"], "label": None, "metadata": metadata})
    return given, [None] * len(given)


def read(file: Path) -> list[Row]:
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def score(rows: Sequence[Row], *options: str) -> tuple[list[Row], float]:
    """The command's output lines, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = [sys.executable, "-m", "miles_core.cli.main", "reward", "score", "--input", str(source), "--output", str(target)]
        started = time.perf_counter()
        subprocess.run([*command, *options], check=True)
        return read(target), time.perf_counter() - started


def by_math_verify(rows: Sequence[Row]) -> tuple[list[float], float]:
    """A loop over math-verify as its README has it, in this process."""
    started = time.perf_counter()
    verdicts = [float(verify(parse(f"${row['label']}$"), parse(row["response"]))) for row in rows]
    return verdicts, time.perf_counter() - started


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", help="file for the disagreements")
    words = parser.parse_args()
    if not os.environ.get("MILES_TEST_DATA"):
        print("MILES_TEST_DATA names no folder of data sets: nothing to measure")
        return
    logging.disable(logging.CRITICAL)
    data = Path(os.environ["MILES_TEST_DATA"])
    figures: dict[str, Any] = {}
    shown: list[Row] = []
    parts = [
        ("Qwen2.5-Math, math", qwen, ("--rm-type", "math"), True),
        ("GSM8K solutions, dapo", gsm8k, ("--rm-type", "dapo", "--reward-key", "acc"), True),
        ("MATH-500 in ten spellings, math", gold, ("--rm-type", "math"), True),
        ("IFBench outputs, strict", ifbench, ("--rm-type", "ifbench"), False),
        ("IFBench outputs, loose", ifbench, ("--rm-type", "ifbench", "--ifbench-loose"), False),
    ]
    for name, load, options, compared in parts:
        rows, expected = load(data)
        found, seconds = score(rows, *options)
        scored = [line["score"] for line in found if line["status"] == "ok"]
        figures[name] = {
            "responses": len(rows),
            "not graded": len(rows) - len(scored),
            "mean": round(sum(scored) / len(scored), 4),
            "responses/s, with the start of Python": round(len(rows) / seconds),
        }
        if not compared:
            continue
        wrong = [(row, line, verdict) for row, line, verdict in zip(rows, found, expected, strict=True) if line["score"] != verdict]
        shown += [{"part": name, "there": verdict, **line, **row} for row, line, verdict in wrong]
        theirs, took = by_math_verify(rows)
        figures[name] |= {
            "disagreements": len(wrong),
            "disagreements of math-verify": sum(a != b for a, b in zip(theirs, expected, strict=True)),
            "math-verify responses/s": round(len(rows) / took),
        }
    if words.show:
        Path(words.show).write_text("".join(json.dumps(row) + "\n" for row in shown), encoding="utf-8")
    record.save(
        "rewards-measured", figures, "one call of miles reward score each, with its default workers; math-verify in one process"
    )


if __name__ == "__main__":
    main()
