"""Whether two mathematical answers are equal: from memory, by spelling and numbers, and only then in a worker process."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from miles_core.config import RewardOptions
from miles_core.options import Config
from miles_core.samples import Invalid, Score, Scored, Timeout
from miles_rewards.mathematics.compare import equal
from miles_rewards.pool import GradingPool
from miles_rewards.ungradable import Ungradable

REMEMBERED = 1 << 16
"""Verdicts kept, the most recently used ones. The longest takes 2 kB."""


class Comparison:
    """Compares answers with labels, as LaTeX or plain text.

    A pair is compared once: its verdict is remembered, and a pair that is being compared is waited for. A timeout is not
    remembered, for it may say more about the machine than about the pair.
    """

    def __init__(self, config: Config) -> None:
        options = config.get(RewardOptions)
        target = "miles_rewards.mathematics.algebra:grade"
        self.pool = GradingPool(target, workers=options.reward_workers, timeout=options.reward_timeout)
        self._known: OrderedDict[tuple[str, str], Score | None] = OrderedDict()
        self._running: dict[tuple[str, str], asyncio.Future[Score]] = {}

    def now(self, answer: str, label: str) -> Score | None:
        """The verdict without any process: 1.0, 0.0 or a failure; None when only algebra can tell. Microseconds for any input."""
        pair = answer, label
        if pair in self._known:
            self._known.move_to_end(pair)
            return self._known[pair]
        verdict = compare_cheaply(answer, label)
        self._remember(pair, verdict)
        return verdict

    async def compare(self, answer: str, label: str) -> Score:
        """The verdict: 1.0, 0.0 or a failure."""
        verdict = self.now(answer, label)
        if verdict is not None:
            return verdict
        pair = answer, label
        if pair not in self._running:
            running = asyncio.ensure_future(self.pool.grade(answer, label))
            self._running[pair] = running
            running.add_done_callback(lambda _: self._running.pop(pair, None))
        # A caller that is cancelled must not take the verdict away from others that wait for it.
        verdict = await asyncio.shield(self._running[pair])
        if not isinstance(verdict, Timeout):
            self._remember(pair, verdict)
        return verdict

    async def close(self) -> None:
        """End the worker processes."""
        await self.pool.close()

    def _remember(self, pair: tuple[str, str], verdict: Score | None) -> None:
        if len(pair[0]) + len(pair[1]) > 2048:
            return
        self._known[pair] = verdict
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def compare_cheaply(answer: str, label: str) -> Score | None:
    """The verdict by spelling and numbers; None when only algebra can tell."""
    try:
        verdict = equal(answer, label)
    except Ungradable as error:
        return Invalid(str(error))
    return None if verdict is None else Scored(float(verdict))
