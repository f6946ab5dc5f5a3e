"""A reward made of a rule: a function that grades one sample in line, or finds an answer to compare in another process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from miles_core.samples import Invalid, Sample, Score, Scored
from miles_rewards.mathematics.comparison import Comparison
from miles_rewards.ungradable import Ungradable

TURN = 0.002
"""Seconds of grading in line before the event loop gets a turn."""


@dataclass(frozen=True)
class Question:
    """Is ``answer`` mathematically equal to ``label``? ``then`` makes the score of the verdict 1.0 or 0.0."""

    answer: str
    label: str
    then: Callable[[float], Scored] = Scored


Rule = Callable[[Sample], Score | Question]
"""What a type of reward is. Takes microseconds; may raise :class:`~miles_rewards.ungradable.Ungradable`."""


class RuleReward:
    """Implements :class:`miles_core.protocols.Reward`.

    Args:
        rule: grades a sample, or asks a question about it.
        comparison: answers the questions of the rule; None for a rule that asks none.
    """

    def __init__(self, rule: Rule, comparison: Comparison | None = None) -> None:
        self.rule = rule
        self.comparison = comparison

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One score per sample, in order."""
        found: list[Score | Question] = []
        turn = time.perf_counter()
        for sample in samples:
            found.append(self.now(sample))
            if time.perf_counter() - turn > TURN:
                await asyncio.sleep(0)
                turn = time.perf_counter()
        asked = {(each.answer, each.label) for each in found if isinstance(each, Question)}
        if not asked:
            return [each for each in found if not isinstance(each, Question)]
        assert self.comparison is not None
        questions = sorted(asked)
        verdicts = await asyncio.gather(*(self.comparison.compare(*question) for question in questions))
        by_question = dict(zip(questions, verdicts, strict=True))
        return [_settle(each, by_question[each.answer, each.label]) if isinstance(each, Question) else each for each in found]

    async def close(self) -> None:
        """End the worker processes."""
        if self.comparison is not None:
            await self.comparison.close()

    def now(self, sample: Sample) -> Score | Question:
        """The score without any process, or the question that only a process can answer. Microseconds."""
        if not isinstance(sample.response, str):
            return Invalid(f"the response is a {type(sample.response).__name__}, not text")
        try:
            found = self.rule(sample)
            if isinstance(found, Question) and self.comparison is not None:
                verdict = self.comparison.now(found.answer, found.label)
                return found if verdict is None else _settle(found, verdict)
        except Ungradable as error:
            return Invalid(str(error))
        return found


def _settle(question: Question, verdict: Score) -> Score:
    if not isinstance(verdict, Scored):
        return verdict
    assert isinstance(verdict.value, float)
    return question.then(verdict.value)
