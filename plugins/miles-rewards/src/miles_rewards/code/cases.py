"""Test cases as data sets write them."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miles_rewards.ungradable import Ungradable

MOST = 1000
"""Tests of one sample."""


@dataclass(frozen=True)
class Case:
    """One test. Exactly one of these forms.

    Attributes:
        stdin: text for the standard input, with ``expected`` on the standard output.
        call: name of a function, called with ``arguments``, that returns ``expected``.
        source: Python that raises unless the program is right.
    """

    stdin: str | None = None
    call: str | None = None
    arguments: tuple[Any, ...] = ()
    expected: Any = None
    source: str | None = None


def read_cases(label: Any, metadata: Mapping[str, Any]) -> list[Case]:
    """The tests of a sample: ``metadata["tests"]`` or ``metadata["test_cases"]``, else the label.

    Forms: ``{"inputs": [...], "outputs": [...], "fn_name"?}``; a list of ``{"input", "output", "fn_name"?}``; a list of texts, each
    of which is Python with asserts; one such text; any of these as JSON text. ``metadata["entry_point"]`` names the function that
    ``check`` of a text is called with.

    Raises:
        Ungradable: there is none, or none that can be read.
    """
    given = next((metadata[key] for key in ("tests", "test_cases") if metadata.get(key) is not None), label)
    function = metadata.get("fn_name")
    if isinstance(given, str):
        given = _parsed(given)
    if isinstance(given, Mapping) and "inputs" in given:
        inputs, outputs = given["inputs"], given.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise Ungradable("the tests have not as many outputs as inputs")
        name = given.get("fn_name") or function
        cases = [_case({"input": i, "output": o, "fn_name": name}) for i, o in zip(inputs, outputs, strict=True)]
    elif isinstance(given, list):
        cases = [_source(each, metadata) if isinstance(each, str) else _case(each, function) for each in given]
    elif isinstance(given, str) and given.strip():
        cases = [_source(given, metadata)]
    else:
        raise Ungradable(f"the tests are {'missing' if given is None else f'a {type(given).__name__}'}")
    if not cases:
        raise Ungradable("there are no tests")
    if len(cases) > MOST:
        raise Ungradable(f"there are {len(cases)} tests, more than {MOST}")
    return cases


def _case(given: Any, function: Any = None) -> Case:
    if not isinstance(given, Mapping) or "input" not in given or "output" not in given:
        raise Ungradable("a test is neither a text nor has it an input and an output")
    name = given.get("fn_name") or function
    stdin, expected = given["input"], given["output"]
    if name:
        if not isinstance(name, str) or not name.isidentifier():
            raise Ungradable(f"the function that a test calls is {name!r}")
        # Some data sets write the arguments as lines of JSON.
        arguments = [_json(line) for line in stdin.splitlines() if line.strip()] if isinstance(stdin, str) else stdin
        if not isinstance(arguments, list):
            raise Ungradable("the arguments of a test are no list")
        return Case(call=name, arguments=tuple(arguments), expected=_json(expected) if isinstance(expected, str) else expected)
    return Case(stdin=_lines(stdin), expected=_lines(expected))


def _source(text: str, metadata: Mapping[str, Any]) -> Case:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Ungradable(f"a test is no Python: {error}") from None
    entry = metadata.get("entry_point")
    if isinstance(entry, str) and entry.isidentifier() and "def check(" in text:
        text = f"{text}\ncheck({entry})\n"
    return Case(source=text)


def _parsed(text: str) -> Any:
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _lines(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_lines(each) for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Ungradable(f"the input or output of a test is a {type(value).__name__}")
    try:
        return str(value)
    except ValueError as error:
        raise Ungradable(f"the input or output of a test cannot be written: {error}") from None
