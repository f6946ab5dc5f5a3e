"""What a grader raises when it cannot tell."""

from __future__ import annotations


class Ungradable(Exception):
    """The question has no answer: a label that cannot be read, a number too large to compute. Becomes ``Invalid``, never 0."""
