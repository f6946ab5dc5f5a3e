"""Rows of a rollout, divided over optimizer steps and data-parallel ranks. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

from miles_core.errors import RunError
from miles_core.training.balance import balanced_partitions
from miles_core.training.rows import RankBatch, StepCount, TrainRow


def split_rows(rows: Sequence[TrainRow], *, data_size: int, steps: int, balance: bool, rollout_id: int) -> list[RankBatch]:
    """One batch for each data-parallel rank.

    Optimizer step s takes the contiguous block ``[s G, (s + 1) G)`` of the rows, G being rows per step (blocks differ by one when
    they do not divide). Within a step rank r takes every ``data_size``-th row from the r-th on or, to balance, as many rows with
    about equal sums of tokens.

    Args:
        rows: of the whole rollout, in order.
        data_size: data-parallel ranks.
        steps: optimizer steps on this rollout.
        balance: ``--balance-data``.
        rollout_id: of the rollout.

    Raises:
        RunError: there are fewer rows than steps (M419).
    """
    if len(rows) < steps:
        raise RunError(
            "M419",
            f"rollout {rollout_id} has {len(rows)} samples for {steps} optimizer steps",
            owner="miles-core",
            fix="lower --num-steps-per-rollout, raise --rollout-batch-size, or check what leaves samples out",
        )
    chosen: list[list[int]] = [[] for _ in range(data_size)]
    step_positions: list[list[tuple[int, ...]]] = [[] for _ in range(data_size)]
    counts = []
    for step in range(steps):
        start, stop = step * len(rows) // steps, (step + 1) * len(rows) // steps
        counts.append(count_step(rows[start:stop]))
        balanced = _balanced(rows[start:stop], data_size) if balance else None
        for rank in range(data_size):
            share = balanced[rank] if balanced is not None else range(rank, stop - start, data_size)
            first = len(chosen[rank])
            chosen[rank] += [start + position for position in share]
            step_positions[rank].append(tuple(range(first, len(chosen[rank]))))
    return [
        RankBatch(rollout_id, tuple(rows[i] for i in chosen[rank]), tuple(step_positions[rank]), tuple(counts))
        for rank in range(data_size)
    ]


def count_step(rows: Sequence[TrainRow]) -> StepCount:
    """The denominators of one optimizer step over these rows. A fully masked sample counts as one sample and one token."""
    return StepCount(samples=len(rows), tokens=float(sum(max(float(row.mask.sum()), 1.0) for row in rows)))


def _balanced(rows: Sequence[TrainRow], data_size: int) -> list[list[int]]:
    """Positions for each rank, ascending; numbers of rows differ by one at most."""
    sizes = [len(row.tokens) for row in rows]
    missing = -len(sizes) % data_size
    partitions = balanced_partitions(sizes + [0] * missing, data_size, equal_counts=True)
    return [[position for position in partition if position < len(sizes)] for partition in partitions]
