"""A resolved value and where it came from."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Source(enum.IntEnum):
    """Where a value came from; a higher one wins."""

    DEFAULT = 0
    RECIPE = 1
    FILE = 2
    ENVIRONMENT = 3
    COMMAND_LINE = 4
    DERIVED = 5


USER_SOURCES = frozenset({Source.FILE, Source.ENVIRONMENT, Source.COMMAND_LINE})
"""Where a value comes from that the user set."""


@dataclass(frozen=True)
class Value:
    """A value with its origin. ``place`` is ``config.yaml:12``, ``MILES_LR``, ``argument 7`` or the recipe's name."""

    value: Any
    source: Source
    place: str = ""
