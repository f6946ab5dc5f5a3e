"""Grading beside a rollout: the event loop goes on, and nothing is worked out twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from miles_core.config import RewardOptions
from miles_core.options import Config
from miles_core.samples import Invalid, Sample, Score, Scored, Timeout
from miles_rewards.mathematics import comparison
from miles_rewards.mathematics.comparison import Comparison
from miles_rewards.mathematics.reward import create

pytestmark = pytest.mark.timeout(120)


async def pauses(work: asyncio.Future[object]) -> list[float]:
    """Seconds from one turn of the loop to the next while the work goes on, with a callback that is always due; sorted."""
    found, last = [], time.perf_counter()
    while not work.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        found.append(now - last)
        last = now
    await work
    return sorted(found)


@pytest.mark.slow
def test_heavy_grading_does_not_stop_the_loop() -> None:
    series = "\\sum_{n=1}^{LAST} \\frac{x}{(n^{99}+1)^{99}}"
    heavy = [Sample(response=f"\\boxed{{{series.replace('LAST', str(9990 + n))}}}", label="\\sqrt{2}+x") for n in range(2)]
    long = [Sample(response="so " * 60_000 + f"\\boxed{{{n}}}", label="1") for n in range(200)]
    plain = [Sample(response=f"\\boxed{{\\frac{{{n}}}{{7}}+x}}", label="1") for n in range(3000)]

    async def run() -> tuple[list[float], list[Score]]:
        reward = create(Config.of(RewardOptions(reward_timeout=3.0)))
        try:
            await reward.score([Sample(response="\\boxed{y+x}", label="x+y")])
            work = asyncio.ensure_future(reward.score([*heavy, *long, *plain]))
            return await pauses(work), work.result()
        finally:
            await reward.close()

    found, scores = asyncio.run(run())
    assert scores[:2] == [Timeout(3.0, "the grader was killed")] * 2
    assert all(isinstance(score, Invalid | Scored) for score in scores[2:])
    # Microseconds and about 10 ms when the machine is idle. A grader in line would pause for three seconds; starting a process
    # holds the interpreter until the system has made it, which a busy machine can delay.
    assert found[int(0.99 * len(found))] < 0.02
    assert found[-1] < 1.5


def test_a_pair_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    async def run() -> list[Score]:
        compared = Comparison(Config.of(RewardOptions()))
        original = compared.pool.grade

        async def count(*pair: str) -> Score:
            asked.append(pair)
            return await original(*pair)

        monkeypatch.setattr(compared.pool, "grade", count)
        first = await asyncio.gather(*(compared.compare("y+x", "x+y") for _ in range(20)))
        again = await compared.compare("y+x", "x+y")
        other = await compared.compare("y+x", "x-y")
        await compared.close()
        return [*first, again, other]

    assert asyncio.run(run()) == [Scored(1.0)] * 21 + [Scored(0.0)]
    assert asked == [("y+x", "x+y"), ("y+x", "x-y")]


def test_a_waiter_that_is_cancelled_does_not_take_the_verdict_away() -> None:
    async def run() -> Score:
        compared = Comparison(Config.of(RewardOptions()))
        try:
            first = asyncio.ensure_future(compared.compare("y+x", "x+y"))
            second = asyncio.ensure_future(compared.compare("y+x", "x+y"))
            await asyncio.sleep(0)
            first.cancel()
            return await second
        finally:
            await compared.close()

    assert asyncio.run(run()) == Scored(1.0)


def test_a_timeout_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[Score]:
        compared = Comparison(Config.of(RewardOptions()))
        verdicts: list[Score] = [Timeout(1.0), Scored(1.0)]

        async def next_verdict(*pair: str) -> Score:
            return verdicts.pop(0)

        monkeypatch.setattr(compared.pool, "grade", next_verdict)
        return [await compared.compare("y+x", "x+y") for _ in range(3)]

    assert asyncio.run(run()) == [Timeout(1.0), Scored(1.0), Scored(1.0)]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "REMEMBERED", 10)
    compared = Comparison(Config.of(RewardOptions()))
    for number in range(50):
        assert compared.now(str(number), "7") == Scored(float(number == 7))
    assert len(compared._known) == 10
    compared.now("1" * 5000, "7")
    assert len(compared._known) == 10


def test_a_batch_is_in_order_and_spread(grade: Callable[..., list[Score]]) -> None:
    options = RewardOptions(reward_timeout=20.0, reward_workers=2)
    samples = [Sample(response=f"\\boxed{{{n}y+x}}", label=f"x+{n if n % 3 else n + 1}y") for n in range(2, 40)]
    assert grade("math", samples, options) == [Scored(float(n % 3 > 0)) for n in range(2, 40)]
