"""Reading data files: slices, blank lines, and every bad row with its file and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from miles_core.data.files import PromptFile, Row
from miles_core.data.store import RowStore
from miles_core.errors import UsageError


def read_rows(text: str) -> list[Row]:
    """Rows in order, each read a second time by its position."""
    store = RowStore(text)
    seen = []
    for record, row in store.scan():
        store.keep(record)
        seen.append(row)
    assert [store[position] for position in range(len(store))] == seen
    return seen


def numbers(text: str) -> list[int]:
    return [row.values["n"] for row in read_rows(text)]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [("", [0, 1, 2, 3]), ("@[1:3]", [1, 2]), ("@[2:]", [2, 3]), ("@[:1]", [0]), ("@[:]", [0, 1, 2, 3]), ("@[ 1 : 99 ]", [1, 2, 3])],
)
def test_slices_count_rows_and_not_lines(write, bounds: str, expected: list[int]) -> None:
    path = write({"n": 0}, "", {"n": 1}, "   ", "\t", {"n": 2}, {"n": 3}, "")
    assert numbers(path + bounds) == expected


def test_rows_know_their_line(write) -> None:
    path = write("", {"n": 0}, "", {"n": 1})
    assert [row.place for row in read_rows(path)] == [f"{path}:2", f"{path}:4"]


def test_a_slice_ends_before_rows_behind_it_are_parsed(write) -> None:
    assert numbers(write({"n": 0}, "{broken") + "@[0:1]") == [0]


@pytest.mark.parametrize("bounds", ["@[a:b]", "@[-1:]", "@[1.5:2]"])
def test_illegal_slices(write, bounds: str) -> None:
    with pytest.raises(UsageError, match="M305"):
        read_rows(write({"n": 0}) + bounds)


def test_a_name_that_only_looks_like_a_slice_is_a_path() -> None:
    assert PromptFile.of("a@[3]") == PromptFile(Path("a@[3]"))
    assert PromptFile.of("a@[1:2]@[3:4]") == PromptFile(Path("a@[1:2]"), 3, 4)


@pytest.mark.parametrize("row", ["{broken", '{"n": 1', "[1, 2]", "3", "[" * 100_000])
def test_a_line_that_is_no_object_is_named(write, row: str) -> None:
    path = write({"n": 0}, "", row)
    with pytest.raises(UsageError, match="M303") as caught:
        read_rows(path)
    assert caught.value.owner == f"{path}:3"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"n": "\xe9"}\n')
    with pytest.raises(UsageError, match="M303"):
        read_rows(str(path))


@pytest.mark.parametrize("rows", [(), ("", "  ")])
def test_empty_files(write, rows: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="M302"):
        read_rows(write(*rows))


def test_an_empty_slice(write) -> None:
    with pytest.raises(UsageError, match="M302"):
        read_rows(write({"n": 0}) + "@[1:]")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(UsageError, match="M301"):
            read_rows(str(path))


def test_a_missing_key_names_what_there_is(write) -> None:
    path = write({"question": 1, "answer": 2})
    with pytest.raises(UsageError, match="M304") as caught:
        read_rows(path)[0].required("input")
    assert caught.value.owner == f"{path}:1"
    assert "question, answer" in caught.value.why


def test_a_mapping_is_copied_and_anything_else_refused(write) -> None:
    given, absent, null, wrong = read_rows(write({"m": {"a": 1}}, {}, {"m": None}, {"m": [1]}))
    given.mapping("m")["b"] = 2
    assert given.mapping("m") == {"a": 1}
    assert absent.mapping("m") == null.mapping("m") == {}
    with pytest.raises(UsageError, match="M306"):
        wrong.mapping("m")


def test_reading_files_imports_nothing_heavy() -> None:
    code = "import sys, miles_core.data.store; print(sorted({'torch','ray','transformers','numpy','aiohttp'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
