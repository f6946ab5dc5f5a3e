"""The command line: forms of values, and every mistake with its argument number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from miles_core.options import option, options_of
from miles_core.options.parse import parse_arguments, split_arguments
from miles_core.options.table import FlagTable


@dataclass(frozen=True)
class Group:
    """Things"""

    rate: float = option(0.1, flag="--rate", help="A number.")
    count: int = option(1, flag="--count", aliases=("--number",), help="An integer.")
    loud: bool = option(False, flag="--loud", help="A switch.")
    maybe: bool | None = option(None, flag="--maybe", help="Three states.")
    name: str | None = option(None, flag="--name", help="Text.")
    shape: str = option("round", flag="--shape", choices=("round", "square"), help="A choice.")
    words: list[str] | None = option(None, flag="--words", help="A list.")
    ids: list[int] = option([], flag="--ids", help="Integers.")
    extra: dict[str, Any] = option({}, flag="--extra", help="A mapping.")
    key: int | None = option(None, flag="--key", secret=True, help="A secret.")


TABLE = FlagTable(options_of(Group, "core"))


def values(*arguments: str) -> dict[str, object]:
    parsed = parse_arguments(split_arguments(arguments), TABLE)
    assert not parsed.errors
    assert not parsed.unknown
    return {setting.option.field: setting.value for setting in parsed.settings}


def lines(*arguments: str) -> list[str]:
    return [error.line() for error in parse_arguments(split_arguments(arguments), TABLE).errors]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rate", "1e-3"], {"rate": 1e-3}),
        (["--rate=-.5"], {"rate": -0.5}),
        (["--rate", "-.5"], {"rate": -0.5}),
        (["--rate", "-1e3"], {"rate": -1000.0}),
        (["--rate", "-inf"], {"rate": float("-inf")}),
        (["--count", "-1"], {"count": -1}),
        (["--count", "1_000"], {"count": 1000}),
        (["--count", "1e6"], {"count": 1_000_000}),
        (["--number", "4"], {"count": 4}),
        (["--loud"], {"loud": True}),
        (["--no-loud"], {"loud": False}),
        (["--loud=false"], {"loud": False}),
        (["--no-loud=true"], {"loud": False}),
        (["--maybe", "--no-loud"], {"maybe": True, "loud": False}),
        (["--no-maybe"], {"maybe": False}),
        (["--name", "a b"], {"name": "a b"}),
        (["--name="], {"name": ""}),
        (["--name=--x=1"], {"name": "--x=1"}),
        (["--shape", "square"], {"shape": "square"}),
        (["--words", "a", "b", "--loud", "--words", "c"], {"words": ["a", "b", "c"], "loud": True}),
        (["--words="], {"words": []}),
        (["--ids", "1", "-2"], {"ids": [1, -2]}),
        (["--extra", '{"a": [1, null]}'], {"extra": {"a": [1, None]}}),
    ],
)
def test_values(arguments: list[str], expected: dict[str, object]) -> None:
    assert values(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["--rate", "fast"], "M203", ["argument 1", "--rate", "'fast'", "a number"]),
        (["--rate", "nan"], "M203", ["a number"]),
        (["--count", "1.5"], "M203", ["an integer"]),
        (["--count", "x"], "M203", ["an integer"]),
        (["--loud=perhaps"], "M203", ["true or false"]),
        (["--shape", "oval"], "M203", ["round or square"]),
        (["--ids", "1", "two"], "M203", ["argument 3", "'two'"]),
        (["--extra", "{"], "M203", ["a JSON object"]),
        (["--extra", "[1]"], "M203", ["a JSON object"]),
        (["--loud", "--rate"], "M202", ["argument 2", "--rate has no value"]),
        (["--rate", "--loud"], "M202", ["argument 1", "--rate=-VALUE"]),
        (["--words"], "M202", ["--words has no value"]),
        (["--loud", "yes"], "M202", ["argument 2", "'yes'", "--no-loud"]),
        (["--name", "a", "b"], "M202", ["argument 3", "'b'", "quote"]),
        (["first", "--loud"], "M202", ["argument 1", "'first'"]),
        (["--count", "1", "--number", "2"], "M204", ["--count at argument 1 and --number at argument 3"]),
        (["--loud", "--no-loud"], "M204", ["argument 1", "argument 2"]),
    ],
)
def test_mistakes(arguments: list[str], code: str, parts: list[str]) -> None:
    (line,) = lines(*arguments)
    assert line.startswith(code)
    for part in parts:
        assert part in line


def test_all_mistakes_at_once_and_the_rest_is_kept() -> None:
    parsed = parse_arguments(split_arguments(["--rate", "x", "--cuont", "1", "--loud", "--ids", "a", "--name"]), TABLE)
    assert [error.code for error in parsed.errors] == ["M203", "M203", "M202"]
    assert parsed.unknown == [("--cuont", "argument 3")]
    assert [s.option.field for s in parsed.settings if s.option.field == "loud"] == ["loud"]
    assert TABLE.near_flag("--cuont") == "--count"
    assert TABLE.near_flag("--no_loud") == "--no-loud"
    assert TABLE.near_flag("--zzzzzz") is None


def test_a_secret_is_in_no_message() -> None:
    assert "hunter2" not in "".join(lines("--key", "hunter2"))
    assert "hunter2" not in "".join(lines("--key", "1", "hunter2"))
