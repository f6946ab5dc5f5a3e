"""A reward for models with random weights: it tells their responses apart."""

from __future__ import annotations

from miles_core.samples import Sample


async def even(sample: Sample) -> float:
    """Share of even token ids."""
    return sum(token % 2 == 0 for token in sample.response_ids) / max(len(sample.response_ids), 1)
