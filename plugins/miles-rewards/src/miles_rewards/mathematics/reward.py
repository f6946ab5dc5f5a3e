r"""Reward ``math``: 1.0 when the last ``\boxed{...}`` of the response equals the label, 0.0 when it does not.

Source: the graders of Hendrycks et al. 2021 (MATH, arXiv:2103.03874) and Lightman et al. 2023 (PRM800K, arXiv:2305.20050), with
math-verify's LaTeX parser behind them. The package's README lists where it decides otherwise than those.

Assumptions: the whole response is searched, reasoning included. A response without a box is wrong: 0.0. A label that is missing
or cannot be read, and an answer that is not fit to be graded, is :class:`Invalid`.

Omissions: no partial credit, no units beyond dropping them, no tolerance: 0.3333 is not 1/3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from miles_core.config import RewardOptions
from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.mathematics.boxed import label_answer, last_boxed
from miles_rewards.mathematics.compare import equal
from miles_rewards.pool import GradingPool
from miles_rewards.ungradable import Ungradable

BATCH = 64
"""Samples graded in line before the event loop gets a turn."""


class MathReward:
    """Implements :class:`miles_core.protocols.Reward`. Worker processes start with the first answer that needs algebra."""

    def __init__(self, config: Config) -> None:
        options = config.get(RewardOptions)
        self.pool = GradingPool(
            "miles_rewards.mathematics.algebra:grade", workers=options.reward_workers, timeout=options.reward_timeout
        )

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order."""
        verdicts: list[Score | tuple[str, str]] = []
        for place, sample in enumerate(samples):
            verdicts.append(grade_cheaply(sample.response, sample.label))
            if place % BATCH == BATCH - 1:
                await asyncio.sleep(0)
        graded = iter(await asyncio.gather(*(self.pool.grade(*verdict) for verdict in verdicts if isinstance(verdict, tuple))))
        return [next(graded) if isinstance(verdict, tuple) else verdict for verdict in verdicts]

    async def close(self) -> None:
        """End the worker processes."""
        await self.pool.close()


def grade_cheaply(response: object, label: object) -> Score | tuple[str, str]:
    """The score, or answer and label when only algebra can tell. Microseconds, and bounded for any input."""
    try:
        stated = label_answer(label)
        if not isinstance(response, str):
            raise Ungradable(f"the response is a {type(response).__name__}, not text")
        answer = last_boxed(response)
        if answer is None:
            return Scored(0.0, "no box")
        verdict = equal(answer, stated)
    except Ungradable as error:
        return Invalid(str(error))
    return (answer, stated) if verdict is None else Scored(float(verdict))
