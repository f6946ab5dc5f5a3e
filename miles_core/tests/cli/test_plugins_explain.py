"""The error catalogue, its page, and ``miles explain``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from miles_core.cli.main import cli, main
from miles_core.errors import MilesError, UsageError, UsageErrors
from miles_core.errors.catalogue import CATALOGUE, SECTIONS, markdown

ROOT = Path(__file__).parents[3]


def test_the_page_is_the_catalogue():
    assert (ROOT / "docs" / "errors.md").read_text() == markdown(), "write it anew: miles explain --markdown > docs/errors.md"


def test_codes_are_whole_and_in_order():
    assert list(CATALOGUE) == sorted(CATALOGUE)
    assert sum(map(len, SECTIONS.values())) == len(CATALOGUE)
    for code, said in CATALOGUE.items():
        assert re.fullmatch(r"M\d{3}", code)
        assert said.title
        assert said.meaning.endswith(".")
        assert said.remedy.endswith(".")
        assert said.example.startswith(f"{code} ")
        assert "\n" not in said.example


def raised_codes():
    """Every code that stands as a string constant in the source of the packages, with a file that has it."""
    found = {}
    for source in [*ROOT.glob("miles_core/src/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]:
        if "catalogue" in source.parts:
            continue
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"M[1-4]\d\d", node.value):
                found.setdefault(node.value, source.relative_to(ROOT))
    return found


def test_every_code_that_is_raised_is_explained():
    missing = {code: str(source) for code, source in raised_codes().items() if code not in CATALOGUE}
    assert not missing


def test_every_code_of_plugins_is_raised():
    assert {f"M{number}" for number in range(101, 112)} <= set(raised_codes())


@pytest.mark.parametrize("code", CATALOGUE)
def test_explain_shows_it_all(code):
    shown = " ".join(CliRunner().invoke(cli, ["explain", code.lower()]).output.split())
    said = CATALOGUE[code]
    for text in (said.title, said.meaning, said.remedy, said.example):
        assert " ".join(text.replace("`", "").split()) in shown


def failing(monkeypatch, error):
    def run(*args, **kwargs):
        raise error

    monkeypatch.setattr(cli, "main", run)
    return main([])


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (UsageError("M201", "bad"), 2, ["M201 bad"]),
        (MilesError("M401", "gone", owner="rank 1", fix="again"), 1, ["M401 rank 1: gone. Do: again"]),
        (UsageErrors([UsageError("M201", "one"), UsageError("M202", "two")]), 2, ["M201 one", "M202 two"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
)
def test_errors_are_lines_on_stderr_with_an_exit_code(monkeypatch, capsys, error, code, lines):
    assert failing(monkeypatch, error) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == lines


def test_notes_of_an_error_follow_it(monkeypatch, capsys):
    error = MilesError("M106", "first")
    error.add_note("M106 second")
    assert failing(monkeypatch, error) == 1
    assert capsys.readouterr().err.splitlines() == ["M106 first", "M106 second"]


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        failing(monkeypatch, ZeroDivisionError())
