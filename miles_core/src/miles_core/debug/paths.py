"""Paths with ``{rollout_id}`` and ``{rank}`` in them."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def fields_of(template: str) -> set[str]:
    """The names in braces.

    Raises:
        ValueError: the braces are no legal format.
    """
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def fill(template: str, **values: object) -> Path:
    """The path with its names filled in; a literal brace is written twice."""
    return Path(template.format(**values)).expanduser()


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is there in whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        yield file
    partial.replace(path)
