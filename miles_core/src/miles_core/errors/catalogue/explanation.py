"""What is known about one error code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """An entry of the catalogue.

    Attributes:
        title: the error in a few words.
        meaning: when it occurs, and why that is an error.
        remedy: what to do, step by step.
        example: one line as miles prints it.
    """

    title: str
    meaning: str
    remedy: str
    example: str
