"""The words of ``--sum-of``. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A reward by plugin name, and what it is multiplied with."""

    name: str
    weight: float = 1.0


def parse_parts(words: Sequence[str]) -> list[Part]:
    """``["math", "format=0.2"]`` as parts.

    Raises:
        ValueError: a weight is no finite number, a name is empty or comes twice, it is ``sum`` itself, or there is none.
    """
    parts: list[Part] = []
    for word in words:
        name, given, weight = word.partition("=")
        part = Part(name, float(weight) if given else 1.0)
        if not name or not math.isfinite(part.weight):
            raise ValueError(f"{word!r} is no NAME=WEIGHT with a finite weight")
        if name.rpartition(":")[2] == "sum" or any(name == other.name for other in parts):
            raise ValueError(f"{name!r} cannot be added {'to itself' if name.endswith('sum') else 'twice'}")
        parts.append(part)
    if not parts:
        raise ValueError("it names no reward")
    return parts
