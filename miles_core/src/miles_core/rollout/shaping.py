"""Overlong shaping: a penalty for responses that come close to their limit.

Paper: Yu et al. 2025, DAPO, arXiv:2503.14476, equation 13.

Formula, for a response of n tokens, a limit of L tokens and a buffer of c = ratio * L tokens::

    penalty(n) = factor * clip((L - c - n) / c, -1, 0)

It is 0 up to L - c tokens, falls linearly, and is -factor at L. It is added to the graded reward before rewards are normalised
within groups.

Assumptions: L is ``--rollout-max-response-len``, the same for all samples; tokens that an earlier rollout made count.

Omissions: the paper's -1 beyond L never comes to pass, since generation ends at L; a response that the context limit cuts off
before L is judged by its length like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

from miles_core.samples import Sample


@dataclass(frozen=True)
class OverlongShaping:
    """Attributes: ``limit`` L in tokens, ``ratio`` of the buffer to it, above 0 and at most 1, and ``factor``, 0 or more."""

    limit: int
    ratio: float
    factor: float

    def __call__(self, sample: Sample) -> float:
        """What is added to the reward, 0 or less."""
        buffer = self.ratio * self.limit
        return self.factor * min(0.0, max(-1.0, (self.limit - buffer - sample.response_length) / buffer))
