"""Which rows go through the model together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from miles_core.config import TrainingOptions
from miles_core.errors import UsageError
from miles_core.options import Config
from miles_core.training.balance import balanced_partitions

Bins: TypeAlias = list[tuple[int, ...]]
"""Positions of each micro-batch's rows. An empty one stands for a micro-batch that trains on nothing."""


@dataclass(frozen=True)
class BinRule:
    """How rows are divided into micro-batches: by samples, or with ``cap`` by tokens.

    ``samples`` is of one micro-batch. ``cap`` is the most tokens of prompt and response in a micro-batch; None counts samples.
    A single row above the cap is a micro-batch of its own.
    """

    samples: int = 1
    cap: int | None = None

    @classmethod
    def training(cls, config: Config, context_size: int = 1) -> BinRule:
        """The rule of optimizer steps; the caps of ``context_size`` ranks that share a micro-batch add up.

        Raises:
            UsageError: the options contradict each other (M418).
        """
        options = config.get(TrainingOptions)
        if not options.use_dynamic_batch_size:
            if options.micro_batch_size < 1:
                raise UsageError(
                    "M418", f"--micro-batch-size is {options.micro_batch_size}", owner="miles-core", fix="set 1 or more"
                )
            return cls(samples=options.micro_batch_size)
        if options.max_tokens_per_gpu is None or options.max_tokens_per_gpu < 1:
            raise UsageError("M418", "--use-dynamic-batch-size has no cap", owner="miles-core", fix="set --max-tokens-per-gpu")
        if options.qkv_format != "thd":
            raise UsageError(
                "M418",
                f"--use-dynamic-batch-size does not work with --qkv-format {options.qkv_format}",
                owner="miles-core",
                why="padding would go over the cap",
                fix="set --qkv-format thd, or leave --use-dynamic-batch-size out",
            )
        return cls(cap=options.max_tokens_per_gpu * context_size)

    @classmethod
    def scoring(cls, config: Config, context_size: int = 1) -> BinRule:
        """The rule of passes without gradients: its own cap if there is one, else that of training."""
        options = config.get(TrainingOptions)
        cap = options.log_probs_max_tokens_per_gpu
        if cap is None or options.qkv_format != "thd":
            return cls.training(config, context_size)
        return cls(cap=cap * context_size)

    def count(self, lengths: Sequence[int]) -> int:
        """The fewest micro-batches that this rule allows for rows of these many tokens, found by first fit."""
        if self.cap is None:
            return -(-len(lengths) // self.samples)
        return len(first_fit(lengths, self.cap))

    def oversize(self, lengths: Sequence[int]) -> int:
        """Rows that alone exceed the cap."""
        return 0 if self.cap is None else sum(length > self.cap for length in lengths)

    def bins(self, lengths: Sequence[int], count: int) -> Bins:
        """``count`` micro-batches, which must be at least :meth:`count`; surplus ones split others, then stay empty."""
        if self.cap is None:
            found = [tuple(range(i, min(i + self.samples, len(lengths)))) for i in range(0, len(lengths), self.samples)]
        else:
            found = _balanced(lengths, self.cap, count)
        assert len(found) <= count, "more micro-batches than agreed on"
        return _extended(found, lengths, count)


def first_fit(lengths: Sequence[int], cap: int) -> Bins:
    """Each row in arrival order into the first bin that has room; a row above the cap has a bin to itself."""
    bins: list[list[int]] = []
    room: list[int] = []
    for row, length in enumerate(lengths):
        for i, left in enumerate(room):
            if length <= left:
                bins[i].append(row)
                room[i] -= length
                break
        else:
            bins.append([row])
            room.append(cap - length)
    return [tuple(members) for members in bins]


def _balanced(lengths: Sequence[int], cap: int, count: int) -> Bins:
    """Even bins by Karmarkar and Karp, or those of first fit where an even one would exceed the cap."""
    alone: Bins = [(row,) for row, length in enumerate(lengths) if length > cap]
    fitting = [row for row, length in enumerate(lengths) if length <= cap]
    sizes = [lengths[row] for row in fitting]
    if not fitting:
        return alone
    parts = min(count - len(alone), len(fitting))
    partitions: Sequence[Sequence[int]] = balanced_partitions(sizes, parts, equal_counts=False)
    if any(sum(sizes[i] for i in partition) > cap for partition in partitions):
        partitions = first_fit(sizes, cap)
    return alone + [tuple(fitting[i] for i in partition) for partition in partitions]


def _extended(bins: Bins, lengths: Sequence[int], count: int) -> Bins:
    """As many bins as ``count``: the heaviest that can be are halved, then empty ones follow."""
    found = list(bins)
    while len(found) < count:
        weights = [sum(lengths[row] for row in members) if len(members) > 1 else -1 for members in found]
        heaviest = max(range(len(found)), key=weights.__getitem__, default=-1)
        if heaviest < 0 or weights[heaviest] < 0:
            found += [()] * (count - len(found))
            break
        members = found[heaviest]
        passed, cut = 0, 1
        for cut in range(1, len(members)):
            passed += lengths[members[cut - 1]]
            if 2 * passed >= weights[heaviest]:
                break
        found[heaviest : heaviest + 1] = [members[:cut], members[cut:]]
    return found
