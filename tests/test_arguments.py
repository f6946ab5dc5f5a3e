"""``docs/arguments.md``: every argument of the table is there, and what it says is so."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
ARGUMENTS = 180
VARIABLES = 5
LINE = re.compile(r"\| `([^`]+)` \| (?:`([^`]*)`)? \| ([^|]*) \| ([^|;]*)(?:; [^|]*)? \| ([^|]*) \|")


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The script that writes the page."""
    spec = importlib.util.spec_from_file_location("arguments", ROOT / "docs" / "arguments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["arguments"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> dict[str, tuple[str, str, str, str]]:
    """Default, owner, status and test of each row of the page."""
    text = (ROOT / "docs" / "arguments.md").read_text(encoding="utf-8")
    return {found[1]: (found[2] or "", *(found[i].strip() for i in (3, 4, 5))) for found in LINE.finditer(text)}


def test_no_row_is_missing(table: ModuleType, page) -> None:
    rows = table.rows()
    assert len({row.flag for row in rows}) == len(rows)
    assert sum(not row.variable for row in rows) >= ARGUMENTS
    assert sum(row.variable for row in rows) == VARIABLES
    assert page.keys() == {row.flag for row in rows}


def test_what_works_is_installed_with_its_default_and_a_test(table: ModuleType, page) -> None:
    known, texts = table.installed(), table.test_texts()
    wrong = []
    for row in table.rows():
        default, owner, state, test = page[row.flag]
        if row.variable:
            continue
        if state in (table.WORKS, table.UNTESTED, table.REFUSED):
            if row.flag not in known:
                wrong.append(f"{row.flag} {state}, and no installed plugin has it")
            elif owner != known[row.flag][0] or default != table.shown(known[row.flag][1].default):
                wrong.append(
                    f"{row.flag} is of {known[row.flag][0]} with {known[row.flag][1].default!r}: run python docs/arguments.py"
                )
            elif not table.same_default(row, known[row.flag][1]):
                wrong.append(f"{row.flag} has the default {known[row.flag][1].default!r}, not {row.default}")
        elif row.flag in known:
            wrong.append(f"{row.flag} is {state}, and {known[row.flag][0]} has it: run python docs/arguments.py")
        if state in (table.WORKS, table.REFUSED) and not table.tests_of(row, {test: texts.get(test, "")}):
            wrong.append(f"{row.flag} is not in {test or 'any test'}: run python docs/arguments.py")
    assert not wrong, "\n".join(wrong)


def test_variables_that_work_are_read(table: ModuleType, page) -> None:
    folders = [ROOT / "miles_core" / "src", *ROOT.glob("plugins/*/src")]
    text = "\n".join(file.read_text(encoding="utf-8") for folder in folders for file in folder.rglob("*.py"))
    for row in table.rows():
        if row.variable and page[row.flag][2] == table.WORKS:
            assert f'"{row.flag}"' in text, row.flag


def test_a_wrong_default_is_seen(table: ModuleType) -> None:
    known = table.installed()
    flags = {
        "--lr": "2e-6",
        "--colocate": "True",
        "--input-key": "text",
        "--apply-chat-template-kwargs": "None",
        "--rollout-stop": "x",
    }
    for flag, default in flags.items():
        assert not table.same_default(table.Row("", flag, default, "", ""), known[flag][1]), flag
    assert table.status(table.Row("", "--no-such", "", "", ""), known, "") == ("", table.PLANNED)
