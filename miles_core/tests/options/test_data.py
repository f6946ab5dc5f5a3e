"""Prompt files and evaluation sets: what is wrong, with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miles_core.runtime.checks import data as module

GOOD = {"input": "q", "label": "a"}


def errors(cli, path: object, *changes: str) -> list[str]:
    return cli.errors(cli.but(f"--prompt-data {path}", *changes))


def test_a_missing_file_and_a_folder(cli, tmp_path: Path) -> None:
    (line,) = errors(cli, tmp_path / "none.jsonl")
    assert line.startswith(f"M301 {tmp_path / 'none.jsonl'}")
    assert "no such file" in line
    (line,) = errors(cli, tmp_path)
    assert "it is a folder" in line
    (line,) = cli.errors(cli.but(drop=["--prompt-data"]))
    assert line.startswith("M208")


@pytest.mark.parametrize("rows", [[], ["", "  "]])
def test_an_empty_file(cli, write_rows, rows: list[str]) -> None:
    (line,) = errors(cli, write_rows(*rows))
    assert line.startswith("M302")
    assert "no rows" in line


@pytest.mark.parametrize(
    ("row", "code", "part"),
    [
        ('{"input": "q"', "M303", "it is not JSON"),
        ("[1, 2]", "M303", "no object: list"),
        ("12", "M303", "no object: int"),
        ({"question": "q", "label": "a"}, "M304", "no key 'input'; it has question, label"),
        ({"input": "q"}, "M304", "no key 'label'"),
        ({"input": 5, "label": "a"}, "M306", "'input' is int"),
        ({"input": [], "label": "a"}, "M306", "'input' is list"),
        ({"input": [{"content": "x"}], "label": "a"}, "M306", "messages with a role"),
        ({"input": "q", "label": "a", "metadata": "m"}, "M306", "'metadata' is str"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(cli, write_rows, row: object, code: str, part: str) -> None:
    path = write_rows(GOOD, "", GOOD, row, GOOD)
    (line,) = errors(cli, path)
    assert line.startswith(f"{code} {path}:4: ")
    assert part in line


def test_many_bad_rows_are_one_line(cli, write_rows) -> None:
    path = write_rows(GOOD, *[{"label": "a"}] * 50, GOOD)
    (line,) = errors(cli, path)
    assert line.startswith(f"M304 {path}:2")
    assert "and line 3, 4, 5, ...: 50 rows in all" in line


def test_rows_that_are_not_text(cli, tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"input": "\xe9", "label": "a"}\n')
    (line,) = errors(cli, path)
    assert line.startswith(f"M303 {path}:2")
    assert "UTF-8" in line


def test_rows_that_are_right(cli, write_rows) -> None:
    chat = {"input": [{"role": "user", "content": "q"}], "label": {"any": 1}, "metadata": {"k": 1}, "tools": []}
    path = write_rows(GOOD, chat, {**GOOD, "metadata": None}, GOOD, "")
    planned = cli.plan(cli.but(f"--prompt-data {path}", "--apply-chat-template"))
    assert not planned.errors
    assert not planned.warnings
    assert planned.prompt_rows == 4


def test_messages_need_a_template(cli, write_rows) -> None:
    path = write_rows(GOOD, {"input": [{"role": "user", "content": "q"}], "label": "a"})
    (line,) = errors(cli, path)
    assert line.startswith(f"M314 {path}:2")


def test_rows_to_imitate_have_a_response(cli, write_rows) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]

    def lines(*rows: object, drop: tuple[str, ...] = ()) -> list[str]:
        changes = (f"--prompt-data {write_rows(*rows)}", "--loss-type imitate", "--apply-chat-template")
        return [line[:4] for line in cli.errors(cli.but(*changes, drop=drop))]

    assert lines(GOOD, {"input": turns}) == []
    assert lines({"input": turns}, drop=("--label-key",)) == []
    assert lines({"input": turns[:1]}) == ["M304"]
    assert lines({"input": turns[:1]}, {"input": "q"}, drop=("--label-key",)) == ["M318"]


@pytest.mark.parametrize(("slice_", "rows"), [("[0:4]", 4), ("[2:]", 3), ("[:4]", 4), ("[:]", 5), ("[1:99]", 4)])
def test_slices_count_rows_and_leave_the_rest_alone(cli, write_rows, slice_: str, rows: int) -> None:
    path = write_rows(GOOD, GOOD, "", GOOD, GOOD, GOOD)
    planned = cli.plan(cli.but(f"--prompt-data {path}@{slice_}"))
    assert planned.prompt_rows == rows
    broken = write_rows(GOOD, GOOD, GOOD, GOOD, "{", name="broken.jsonl")
    assert not errors(cli, f"{broken}@[0:4]")
    assert errors(cli, f"{broken}@[4:5]")[0].startswith("M303")


@pytest.mark.parametrize(("slice_", "code"), [("[-2:]", "M305"), ("[0:-1]", "M305"), ("[10:]", "M302"), ("[1]", "M301")])
def test_slices_that_cannot_be(cli, slice_: str, code: str) -> None:
    (line,) = errors(cli, f"{cli.prompts}@{slice_}")
    assert line.startswith(code)


def test_fewer_rows_than_a_rollout_takes(cli, write_rows) -> None:
    planned = cli.plan(cli.but(f"--prompt-data {write_rows(GOOD, GOOD)}"))
    assert any("2 rows, fewer than --rollout-batch-size 4" in line for line in planned.warnings)


def test_the_end_of_a_large_file_is_counted_only(cli, write_rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCAN_BYTES", 200)
    planned = cli.plan(cli.but(f"--prompt-data {write_rows(*[GOOD] * 20, '{')}"))
    assert not planned.errors
    assert planned.prompt_rows == 21


def test_gsm8k_is_scanned_quickly(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import time

    folder = os.environ.get("MILES_TEST_DATA")
    if not folder:
        pytest.skip("MILES_TEST_DATA names no folder of data sets")
    started = time.perf_counter()
    planned = cli.plan(cli.but(f"--prompt-data {folder}/gsm8k/train.jsonl", "--input-key question", "--label-key answer"))
    assert planned.prompt_rows == 7473
    assert time.perf_counter() - started < 15


def evaluation(cli, *words: object, **changes: str) -> list[str]:
    return cli.errors([*cli.but("--eval-interval 2"), "--eval-prompt-data", *map(str, words)])


def test_evaluation_sets_by_pairs(cli, write_rows, tmp_path: Path) -> None:
    rows = write_rows(GOOD, GOOD)
    planned = cli.plan([*cli.but("--eval-interval 2"), "--eval-prompt-data", "a", str(rows), "b", f"{rows}@[1:]"])
    assert planned.eval_rows == {"a": 2, "b": 1}
    assert evaluation(cli, "a", rows, "a", rows)[0].startswith("M216")
    assert "pairs" in evaluation(cli, "a")[0]
    assert evaluation(cli, "a", tmp_path / "none")[0].startswith("M301")
    assert evaluation(cli, "a", write_rows({"label": 1}, name="bad.jsonl"))[0].startswith("M304")
    (line,) = cli.errors(cli.but("--eval-interval 2"))
    assert line.startswith("M216")
    assert "--eval-prompt-data NAME FILE" in line


def test_evaluation_sets_by_file(cli, write_rows, tmp_path: Path) -> None:
    rows = write_rows({"q": "x", "label": "a"})
    config = tmp_path / "eval.yaml"

    def lines(text: str) -> list[str]:
        config.write_text(text, encoding="utf-8")
        return cli.errors(cli.but("--eval-interval 2", f"--eval-config {config}"))

    config.write_text(f"eval:\n  defaults: {{input_key: q}}\n  datasets: [{{name: a, path: {rows}}}]\n")
    assert cli.plan(cli.but("--eval-interval 2", f"--eval-config {config}")).eval_rows == {"a": 1}
    assert not lines(f"datasets:\n  a: {{path: {rows}, input_key: q}}\n")
    assert lines(f"datasets: [{{name: a, path: {rows}}}]")[0].startswith("M304")
    assert lines(f"datasets: [{{name: a, path: {rows}.none}}]")[0].startswith("M301")
    for text in (
        "datasets: []",
        "[1]",
        "",
        "datasets: [1]",
        "datasets: [{name: a}]",
        "a: [",
        "datasets: [{name: a, path: b}]\ndefaults: 1",
    ):
        (line,) = lines(text)
        assert line.startswith("M216"), text
    config.unlink()
    (line,) = cli.errors(cli.but("--eval-interval 2", f"--eval-config {config}"))
    assert "no such file" in line
