"""Prompt files: they exist, are JSON Lines, and their rows have what the options say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from miles_core.config import DataOptions
from miles_core.data.files import PromptFile, prompt_files
from miles_core.data.media import KINDS
from miles_core.data.parquet import is_parquet, look
from miles_core.errors import UsageError
from miles_core.runtime.checks.report import Report, flag_of

SCAN_BYTES = 64 * 1024**2
"""Of a longer file only this front is validated; the rest is counted, and validated when it is read."""

_NAMED_LINES = 3


@dataclass(frozen=True)
class Keys:
    """Which keys the rows of a set have. A key of None is not used. Rows of a supervised run have a response each."""

    input: str
    label: str | None
    metadata: str | None = None
    supervised: bool = False


class _Problems:
    """What is wrong with the rows of one file, by kind, so that a file with a thousand bad rows makes a line and not a thousand."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str, str], list[int]] = {}

    def add(self, line: int, code: str, why: str, fix: str) -> None:
        self.lines.setdefault((code, why, fix), []).append(line)

    def tell(self, report: Report, path: Path) -> None:
        for (code, why, fix), lines in self.lines.items():
            more = ""
            if len(lines) > 1:
                named = ", ".join(str(line) for line in lines[1 : 1 + _NAMED_LINES])
                more = f" (and line {named}{', ...' if len(lines) > 1 + _NAMED_LINES else ''}: {len(lines)} rows in all)"
            owner = f"{path}:{lines[0]}"
            report.error(code, f"a row cannot be used{more}", owner=owner, why=why, fix=fix, path=str(path), line=lines[0])


def check_prompts(report: Report) -> int | None:
    """Check ``--prompt-data`` and return its number of rows, or None when it cannot be used."""
    options = report.peek(DataOptions)
    if options.prompt_data is None:
        report.error("M208", "--prompt-data is missing", fix="give a JSON Lines file of prompts")
        return None
    _check_media(report)
    keys = Keys(options.input_key, options.label_key, options.metadata_key, report.supervised)
    rows = check_file(report, options.prompt_data, keys, report.said(DataOptions, "prompt_data"))
    prompts = options.rollout_batch_size
    if rows is not None and prompts is not None and 0 < rows < prompts:
        report.warn(f"{options.prompt_data} has {rows} rows, fewer than --rollout-batch-size {prompts}: a rollout repeats prompts")
    return rows


def _check_media(report: Report) -> None:
    options = report.peek(DataOptions)
    if options.multimodal_keys is None:
        return
    said = report.said(DataOptions, "multimodal_keys")
    odd = [kind for kind, key in options.multimodal_keys.items() if kind not in KINDS or not isinstance(key, str) or not key]
    if odd or not options.multimodal_keys:
        why = f"it has {', '.join(odd)}" if odd else "it is empty"
        report.error("M325", f"{said} cannot be used", why=why, fix=f"name the key of a row for one of {', '.join(KINDS)}")
    if not options.apply_chat_template:
        why = "the chat template writes the place of each item"
        report.error("M325", f"{said} needs --apply-chat-template", why=why, fix="set it")
    engine = report.selection.engine
    if report.supervised:
        report.error("M325", f"{said} cannot be used", why="supervised training is of text alone", fix="leave it out")
    elif engine is not None and "multimodal" not in engine.capabilities:
        why = f"the engine {engine.name} takes token ids alone"
        report.error("M325", f"{said} cannot be used", why=why, fix="take an engine for such models")


def check_file(report: Report, text: str, keys: Keys, said: str) -> int | None:
    """Check one data file.

    Args:
        text: ``FILE`` or ``FILE@[a:b]``.
        said: the option that names it, for messages.

    Returns:
        Rows in the slice, or None when the file cannot be used.
    """
    try:
        files = prompt_files(text)
    except ValueError as error:
        report.error("M305", f"{said} has no legal slice", why=str(error), fix="write FILE@[a:b] with 0 <= a < b")
        return None
    counts = [_check_one(report, file, keys, said) for file in files]
    return sum(count or 0 for count in counts) if None not in counts else None


def _check_one(report: Report, file: PromptFile, keys: Keys, said: str) -> int | None:
    path = file.path
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else "there is no such file"
        report.error("M301", f"{said} cannot be read", owner=str(path), why=why, fix="check the path", path=str(path))
        return None
    problems = _Problems()
    try:
        total = _parquet_rows(path, keys, problems) if is_parquet(path) else _json_rows(report, file, keys, problems)
    except OSError as error:
        report.error("M301", f"{said} cannot be read", owner=str(path), why=str(error), fix="check its permissions")
        return None
    except UsageError as error:
        report.errors.append(error)
        return None
    rows = max(0, (total if file.stop is None else min(total, file.stop)) - file.start)
    problems.tell(report, path)
    if rows == 0:
        why = f"it has {total} rows, and the slice takes none of them" if total else "it has no rows"
        report.error("M302", f"{said} is empty", owner=str(path), why=why, fix="give a file with a JSON object on each line")
        return None
    return rows if not problems.lines else None


def _json_rows(report: Report, file: PromptFile, keys: Keys, problems: _Problems) -> int:
    templated = report.peek(DataOptions).apply_chat_template
    total = 0
    for index, line, raw in _lines(file.path):
        total = index + 1
        if raw is not None and file.start <= index and (file.stop is None or index < file.stop):
            _check_row(raw, line, keys, templated, problems)
    return total


def _parquet_rows(path: Path, keys: Keys, problems: _Problems) -> int:
    """Columns are checked here; the rows are when they are read."""
    shape = look(path)
    if shape.rows:
        columns = dict.fromkeys(shape.columns)
        if keys.input not in columns:
            _add_missing(columns, 1, keys.input, "input_key", problems)
        if keys.label is not None and keys.label not in columns and not keys.supervised:
            _add_missing(columns, 1, keys.label, "label_key", problems)
    return shape.rows


def _lines(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """Row index, line number and content of every line that is not blank; content is None beyond :data:`SCAN_BYTES`."""
    index = taken = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            taken += len(line)
            yield index, number, line if taken <= SCAN_BYTES else None
            index += 1


def _check_row(raw: bytes, line: int, keys: Keys, templated: bool, problems: _Problems) -> None:
    try:
        row = json.loads(raw)
    except UnicodeDecodeError:
        problems.add(line, "M303", "it is not UTF-8 text", "convert the file to JSON Lines in UTF-8")
        return
    except ValueError as error:
        message = getattr(error, "msg", str(error))
        problems.add(line, "M303", f"it is not JSON: {message}", "write one JSON object on each line, or remove the row")
        return
    if not isinstance(row, dict):
        problems.add(line, "M303", f"it is JSON, but no object: {type(row).__name__}", "write one JSON object on each line")
        return
    prompt = row.get(keys.input, "")
    if keys.input not in row:
        _add_missing(row, line, keys.input, "input_key", problems)
    elif not _is_prompt(prompt):
        why = f"{keys.input!r} is {type(prompt).__name__}, neither text nor a list of messages with a role"
        problems.add(line, "M306", why, "repair the row")
    elif isinstance(prompt, list) and not templated:
        why = "the prompt is a list of messages, but no template is applied"
        problems.add(line, "M314", why, "set --apply-chat-template, or give prompts as text")
    answered = keys.supervised and _is_prompt(prompt) and isinstance(prompt, list) and prompt[-1]["role"] == "assistant"
    if keys.label is not None and keys.label not in row and not answered:
        _add_missing(row, line, keys.label, "label_key", problems)
    elif keys.label is None and keys.supervised and not answered:
        fix = "name the response's key with --label-key, or give messages that end with an assistant turn"
        problems.add(line, "M318", "it has a prompt and no response to train on", fix)
    data = row.get(keys.metadata) if keys.metadata is not None else None
    if data is not None and not isinstance(data, Mapping):
        problems.add(line, "M306", f"{keys.metadata!r} is {type(data).__name__}, not an object", "repair the row")


def _add_missing(row: Mapping[str, object], line: int, key: str, name: str, problems: _Problems) -> None:
    has = ", ".join(map(str, list(row)[:6])) or "none"
    fix = f"repair the row, or name another key with {flag_of(DataOptions, name)}"
    problems.add(line, "M304", f"it has no key {key!r}; it has {has}", fix)


def _is_prompt(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(message, dict) and "role" in message for message in value)
    return isinstance(value, str)
