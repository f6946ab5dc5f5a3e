"""Writes ``arguments.md``, the table of arguments, from ``arguments.tsv`` and the records of the installed plugins.

``python docs/arguments.py``. A row of ``arguments.tsv``: section, flag, default, and by hand a status and a note. The status is
empty for an option, ``in <package>`` for one of a package that is not part of this repository's installed ones yet, ``planned``,
``refused`` for one that is known and cannot be used, or, for a variable of the environment, ``works``. The note says why a default
differs, or what there is instead.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

from miles_core.options.option import Option, options_of
from miles_core.options.resolve import core_options
from miles_core.plugins import PluginHost, PluginIndex

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
WORKS, UNTESTED, PLANNED, REFUSED = "works", "untested", "planned", "refused"
UNSET = ("None", '""', "(Required)", "(internal path)")
"""Defaults that are no value; an empty column says nothing about the default."""


@dataclass(frozen=True)
class Row:
    """One argument as the table has it."""

    section: str
    flag: str
    default: str
    said: str
    note: str

    @property
    def variable(self) -> bool:
        """Whether it is a variable of the environment."""
        return not self.flag.startswith("--")


def rows() -> list[Row]:
    """The rows of ``arguments.tsv``."""
    with (FOLDER / "arguments.tsv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Row(*line) for line in lines[1:]]


def installed() -> dict[str, tuple[str, Option]]:
    """Owner and option of every flag of core and the installed plugins."""
    found: dict[str, tuple[str, Option]] = {}
    for option in core_options():
        for flag in (option.flag, *option.declared.aliases):
            found.setdefault(flag, ("miles-core", option))
    host = PluginHost(PluginIndex.scan())
    for entry in host.index.entries:
        if entry.kind == "commands" or not entry.distribution.startswith("miles-"):
            continue
        loaded = host.load(entry.kind, entry.qualified)
        for group in loaded.options:
            for option in options_of(group, entry.name):
                for flag in (option.flag, *option.declared.aliases):
                    found.setdefault(flag, (entry.distribution, option))
    return found


def same_default(row: Row, option: Option) -> bool:
    """Whether the option's default is the row's."""
    value = option.default
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not row.default:
        return True
    if row.default in UNSET:
        return value in (None, "", [])
    if row.default == "{}":
        return value == {}
    if isinstance(value, bool) or row.default in ("True", "False"):
        return str(value) == row.default
    if isinstance(value, (int, float)):
        return float(value) == float(row.default)
    return str(value) == row.default


def shown(value: object) -> str:
    """A default as the table has it."""
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def status(row: Row, known: dict[str, tuple[str, Option]], test: str) -> tuple[str, str]:
    """Owner and status of a row. An option works when a test has it."""
    if row.flag in known:
        state = REFUSED if row.said == REFUSED else WORKS
        return known[row.flag][0], state if test else UNTESTED
    if row.said.startswith("in "):
        return row.said.removeprefix("in "), "another plugin"
    return "miles-core" if row.said == WORKS else "", row.said or PLANNED


def tests_of(row: Row, texts: dict[str, str]) -> str:
    """A test file that has the flag, or else the field's name, in it; of core's tests if there is one."""
    name = row.flag.removeprefix("--")
    words = [re.compile(rf"{re.escape(row.flag)}(?![\w-])"), re.compile(rf"(?<![\w-]){re.escape(name.replace('-', '_'))}(?!\w)")]
    for word in words:
        for path, text in texts.items():
            if word.search(text):
                return path
    return ""


def test_texts() -> dict[str, str]:
    """Every test file of the repository, by path."""
    folders = [ROOT / "miles_core/tests", *sorted(ROOT.glob("plugins/*/tests")), ROOT / "tests"]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py")) if file.name != "test_arguments.py"]
    files.sort(key=lambda file: not file.name.startswith("test_"))
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


def page() -> str:
    """The whole of ``arguments.md``."""
    known, texts, every = installed(), test_texts(), rows()
    tests = [tests_of(row, texts) for row in every]
    states = [status(row, known, test) for row, test in zip(every, tests, strict=True)]
    done = sum(state == WORKS for _, state in states)
    lines = [
        "# Arguments",
        "",
        "Written by `python docs/arguments.py` from `arguments.tsv` and the installed plugins' records. `miles run --help` shows",
        "the options of what a command line selects, with their meaning, and further ones that are not of this table.",
        "",
        f"{done} of {len(every)} work.",
    ]
    section = ""
    for row, (owner, state), test in zip(every, states, tests, strict=True):
        if row.section != section:
            section = row.section
            lines += ["", f"## {section}", "", "| argument | default | owner | status | test |", "|---|---|---|---|---|"]
        default = shown(known[row.flag][1].default) if row.flag in known else row.default
        note = f"; {row.note}" if row.note else ""
        test = test if state in (WORKS, REFUSED) else ""
        lines.append(f"| `{row.flag}` | {f'`{default}`' if default else ''} | {owner} | {state}{note} | {test} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (FOLDER / "arguments.md").write_text(page(), encoding="utf-8")
