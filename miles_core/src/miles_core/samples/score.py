"""What a reward says about a sample: a number, a dict of numbers, or a failure. A failure is never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Scored:
    """A graded sample. ``value`` is a number, or a mapping from which ``--reward-key`` picks one."""

    value: float | Mapping[str, object]
    detail: str = ""


@dataclass(frozen=True)
class Invalid:
    """The sample could not be graded (unparseable label, grader crash). Counted and masked from the loss."""

    detail: str


@dataclass(frozen=True)
class Timeout:
    """Grading did not end in ``seconds``. Counted and masked from the loss."""

    seconds: float
    detail: str = ""


Score = Scored | Invalid | Timeout
