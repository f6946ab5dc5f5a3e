"""Data files as options name them, and rows of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miles_core.errors import UsageError

_SLICE = re.compile(r"(?P<path>.*)@\[(?P<start>[^:\]]*):(?P<stop>[^:\]]*)\]", re.DOTALL)


@dataclass(frozen=True)
class PromptFile:
    """A data file as an option names it: ``FILE`` or ``FILE@[start:stop]`` with rows counted from 0, blank lines left out."""

    path: Path
    start: int = 0
    stop: int | None = None

    @classmethod
    def of(cls, text: str) -> PromptFile:
        """Raises:
        ValueError: the bounds of the slice are no whole numbers from 0 on.
        """
        match = _SLICE.fullmatch(text)
        if match is None:
            return cls(Path(text).expanduser())
        bounds = []
        for name in ("start", "stop"):
            bound = match[name].strip()
            if bound and not bound.isdecimal():
                raise ValueError(f"{name} {bound!r} is no whole number from 0 on")
            bounds.append(int(bound) if bound else None)
        return cls(Path(match["path"]).expanduser(), bounds[0] or 0, bounds[1])


@dataclass(frozen=True)
class Row:
    """One row of a data file. ``place`` is ``file:line``."""

    place: str
    values: dict[str, Any]

    def required(self, key: str) -> Any:
        """The value of a key.

        Raises:
            UsageError: the row lacks it (M304).
        """
        if key not in self.values:
            has = ", ".join(map(str, list(self.values)[:6])) or "none"
            raise UsageError(
                "M304",
                f"a row has no key {key!r}",
                owner=self.place,
                why=f"it has {has}",
                fix="repair the row, or name another key",
            )
        return self.values[key]

    def mapping(self, key: str) -> dict[str, Any]:
        """A copy of the mapping under a key; empty when the row has none.

        Raises:
            UsageError: it is something else (M306).
        """
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise UsageError("M306", f"{key!r} is {type(value).__name__}, not an object", owner=self.place, fix="repair the row")
        return dict(value)


def prompt_files(text: str) -> list[PromptFile]:
    """The files that an option names: ``FILE[@[a:b]]``, or several with commas between.

    A file whose name holds a comma is taken as such when it exists.

    Raises:
        ValueError: the bounds of a slice are no whole numbers from 0 on.
    """
    whole = PromptFile.of(text)
    if whole.path.exists() or "," not in text:
        return [whole]
    return [PromptFile.of(part.strip()) for part in text.split(",") if part.strip()]


def parse_row(line: bytes, place: str) -> Row:
    """The row that a line holds.

    Raises:
        UsageError: it is no JSON object (M303).
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", str(error))
        raise UsageError("M303", "a line is not JSON", owner=place, why=why, fix="write one JSON object on each line") from error
    if not isinstance(values, dict):
        raise UsageError(
            "M303", f"a line is JSON, but no object: {type(values).__name__}", owner=place, fix="write one JSON object on each line"
        )
    return Row(place, values)
