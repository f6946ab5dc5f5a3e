"""Reward ``ifbench``: 1.0 when the response follows every instruction of its row, else 0.0.

Source: the instructions of IFEval (Zhou et al. 2023, arXiv:2311.07911) and IFBench (Pyatkin et al. 2025, arXiv:2507.02833), 25 and
58 of them, and their strict and loose accuracy by prompt.

Contract: the metadata has ``instruction_id_list`` (texts; blank ones are dropped) and ``kwargs``: a list with a dict for each, one
dict for all, or nothing; a short list goes on with its last dict, and nulls and what the instruction does not ask for are ignored.
The label is not read. Reasoning up to the last ``</think>`` is no part of the response; what is left blank follows nothing. No
instruction, an unknown one, or one without its arguments is ``Invalid``.

Examples: ``no comma here`` follows ``punctuation:no_comma``; ``a, comma`` does not.

Assumptions: English where words have to be known: syllables, verbs and stop words are those of the modules beside this one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from miles_core.config import RewardOptions
from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.ifbench.options import IfbenchOptions
from miles_rewards.mathematics.boxed import last_boxed
from miles_rewards.pool import GradingPool
from miles_rewards.ungradable import Ungradable

TARGET = "miles_rewards.ifbench.grade:grade"


class InstructionReward:
    """Implements :class:`miles_core.protocols.Reward`."""

    def __init__(self, pool: GradingPool, loose: bool, boxed: bool = False) -> None:
        self._pool = pool
        self._loose = "loose" if loose else ""
        self._boxed = boxed

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order."""
        return list(await asyncio.gather(*(self._grade(sample) for sample in samples)))

    async def close(self) -> None:
        """End the worker processes."""
        await self._pool.close()

    async def _grade(self, sample: Sample) -> Score:
        if not isinstance(sample.response, str):
            return Invalid(f"the response is a {type(sample.response).__name__}, not text")
        if self._boxed:
            sample = dataclasses.replace(sample, response=last_boxed(sample.response) or "")
        try:
            asked = json.dumps(instructions(sample.metadata))
        except (Ungradable, TypeError, ValueError) as error:
            return Invalid(str(error))
        response = sample.response.rpartition("</think>")[2]
        if not response.strip():
            return Scored(0.0, "blank")
        return await self._pool.grade(response, asked, self._loose)


def create(config: Config) -> InstructionReward:
    """The reward. Worker processes start with the first sample."""
    return _make(config, boxed=False)


def create_boxed(config: Config) -> InstructionReward:
    """The reward of the last box."""
    return _make(config, boxed=True)


def instructions(metadata: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The ids of a row's instructions, each with its arguments.

    Raises:
        Ungradable: there is none.
    """
    listed = metadata.get("instruction_id_list")
    names = [each.strip() for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
    names = [name for name in names if name]
    if not names:
        raise Ungradable("the metadata has no instruction_id_list")
    given = metadata.get("kwargs")
    each = given if isinstance(given, list) and given else [given]
    rows = [each[min(place, len(each) - 1)] for place in range(len(names))]
    return [(name, _without_nulls(row)) for name, row in zip(names, rows, strict=True)]


def _without_nulls(row: Any) -> dict[str, Any]:
    return {str(key): value for key, value in row.items() if value is not None} if isinstance(row, Mapping) else {}


def _make(config: Config, boxed: bool) -> InstructionReward:
    options = config.get(RewardOptions)
    pool = GradingPool(TARGET, workers=options.reward_workers, timeout=options.reward_timeout)
    return InstructionReward(pool, config.get(IfbenchOptions).ifbench_loose, boxed)
