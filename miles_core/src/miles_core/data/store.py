"""Rows of data files that may be larger than memory."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from miles_core.data.files import PromptFile, Row, parse_row, prompt_files
from miles_core.data.parquet import is_parquet, write_lines
from miles_core.errors import UsageError

_RECORD = struct.Struct("<HQII")
"""File, offset of the row in bytes, its length in bytes, and its line: 18 bytes a row."""
_BUFFER = 4096
"""Records that are written at once."""


class RowStore:
    """The rows of ``FILE``, ``FILE@[a:b]`` or several with commas between, by position.

    No row is held in memory: a temporary file without a name, 18 bytes a row, says where each is. Parquet files are written out as
    JSON Lines once, to such a file. Memory does not depend on the number of rows.

    Args:
        text: what the option says.
        scratch: folder of temporary files; None for that of the system.
    """

    def __init__(self, text: str, scratch: Path | None = None) -> None:
        try:
            self._named = prompt_files(text)
        except ValueError as error:
            raise UsageError(
                "M305", f"{text} has no legal slice", why=str(error), fix="write FILE@[a:b] with 0 <= a < b"
            ) from error
        self._scratch = scratch
        self._streams: list[BinaryIO] = []
        self._index = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - lives as long as the store
        self._pending = bytearray()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, position: int) -> Row:
        """The row at a position, read from its file.

        Raises:
            UsageError: the file changed since it was scanned (M303).
        """
        if not 0 <= position < self._size:
            raise IndexError(position)
        self._write()
        record = os.pread(self._index.fileno(), _RECORD.size, position * _RECORD.size)
        return self._read(record)

    def scan(self) -> Iterator[tuple[bytes, Row]]:
        """Every row of the files with its record, for :meth:`keep`. To be used once.

        Raises:
            UsageError: a file cannot be read (M301), has no rows (M302), holds something else (M303), or needs a library (M322).
        """
        for number, file in enumerate(self._named):
            stream = self._open(file)
            self._streams.append(stream)
            found = False
            for offset, line, raw in _lines(stream, file):
                found = True
                yield _RECORD.pack(number, offset, len(raw), line), parse_row(raw, f"{file.path}:{line}")
            if not found:
                raise UsageError(
                    "M302", "a data file has no rows", owner=str(file.path), fix="give a file with a JSON object on each line"
                )

    def keep(self, record: bytes) -> None:
        """Take a row in, behind those that are in already."""
        self._pending += record
        self._size += 1
        if len(self._pending) >= _BUFFER * _RECORD.size:
            self._write()

    def _write(self) -> None:
        if self._pending:
            self._index.seek(0, os.SEEK_END)
            self._index.write(self._pending)
            self._index.flush()
            self._pending = bytearray()

    def _read(self, record: bytes) -> Row:
        number, offset, length, line = _RECORD.unpack(record)
        raw = os.pread(self._streams[number].fileno(), length, offset)
        return parse_row(raw, f"{self._named[number].path}:{line}")

    def _open(self, file: PromptFile) -> BinaryIO:
        try:
            if not is_parquet(file.path):
                return file.path.open("rb")
            lines = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - lives as long as the store
            write_lines(file.path, lines, file.stop)
            return lines
        except OSError as error:
            raise UsageError(
                "M301", "a data file cannot be read", owner=str(file.path), why=str(error), fix="check the path"
            ) from error


def _lines(stream: BinaryIO, file: PromptFile) -> Iterator[tuple[int, int, bytes]]:
    """Offset, line number and content of the lines in the file's slice that are not blank."""
    index = offset = 0
    stream.seek(0)
    for line, raw in enumerate(stream, 1):
        start, offset = offset, offset + len(raw)
        if raw.isspace():
            continue
        if file.stop is not None and index >= file.stop:
            return
        if index >= file.start:
            yield start, line, raw
        index += 1
