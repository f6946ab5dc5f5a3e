"""A reward that tells the responses of an untrained model apart."""

from __future__ import annotations

from miles_core.samples import Sample


async def digits(sample: Sample) -> float:
    """Share of the response's characters that are digits."""
    return sum(c.isdigit() for c in sample.response) / max(len(sample.response), 1)
