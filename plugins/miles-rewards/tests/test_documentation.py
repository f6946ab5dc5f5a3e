"""docs/rewards.md: every worked example, and every deliberate difference, is what the reward decides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from miles_core.samples import Invalid, Sample, Score, Scored, Status
from miles_rewards import plugin

PAGE = Path(__file__).parents[3] / "docs" / "rewards.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout of the repository")


def rows() -> Iterator[dict[str, str]]:
    """Every row of a table with the columns response and label, with the name of its section as its type."""
    heads: list[str] = []
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.strip("# `")
        if not line.startswith("|"):
            heads = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not heads:
            heads = cells
        elif "response" in heads and not set(line) <= set("|-"):
            yield {"type": section, **dict(zip(heads, cells, strict=True))}


def text(cell: str) -> str:
    return cell.strip("`").replace("⏎", "\n").replace("\\|", "|")


def value(score: Score) -> str:
    if not isinstance(score, Scored):
        return type(score).__name__
    number = score.value if isinstance(score.value, float) else score.value["score"]  # type: ignore[index]
    return f"{number:g}"


def test_every_row(grade: Callable[..., list[Score]]) -> None:
    wrong, seen = [], set()
    for row in rows():
        name, cell = text(row["type"]), row["label"]
        label: Any = None if not cell else text(cell) if cell.startswith("`") else json.loads(cell)
        metadata = json.loads(text(row.get("metadata", "")) or "{}")
        sample = Sample(response=text(row["response"]), label=label, metadata=metadata, status=Status.COMPLETED)
        (score,) = grade(name, [sample])
        seen.add(name)
        if value(score) != (expected := row.get("score", row.get("here"))):
            wrong.append((name, sample.response, label, expected, score))
    assert not wrong
    assert len(list(rows())) > 90
    assert seen >= {"math", "deepscaler", "dapo", "gpqa", "f1", "exact", "format", "boxed_gpqa"}


def test_differences_differ() -> None:
    differences = [row for row in rows() if "there" in row]
    assert len(differences) > 25
    assert all(row["here"] != row["there"] and row["why"] for row in differences)


def test_every_reward_has_its_section() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for record in plugin.miles_reward():
        assert f"`{record.name}`" in page, record.name


def test_no_label_is_a_failure_of_every_reward_that_reads_it(grade: Callable[..., list[Score]]) -> None:
    for name in sorted(plugin.LABELLED):
        (score,) = grade(name, [Sample(response="\\boxed{1}", label=None, status=Status.COMPLETED)])
        assert isinstance(score, Invalid), name
