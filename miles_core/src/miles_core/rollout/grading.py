"""Scores onto samples. A reward that fails is a failure, never a zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from miles_core.errors import MilesError, RunError
from miles_core.options import Config
from miles_core.protocols import Reward
from miles_core.rollout.row_rewards import RowRewards
from miles_core.samples import Invalid, Sample, Score, Scored, Timeout

SHOWN = 3


@dataclass
class Tally:
    """How grading went, for metrics and for the limit on failures. ``details`` are of the first few failures."""

    graded: int = 0
    invalid: int = 0
    timeout: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """Samples that could not be graded."""
        return self.invalid + self.timeout

    def check(self, limit: float, name: str) -> None:
        """Raise when more than the share ``limit`` of the samples failed.

        Raises:
            RunError: M402.
        """
        total = self.graded + self.failures
        if total and self.failures / total > limit:
            raise RunError(
                "M402",
                f"{self.failures} of {total} samples could not be graded ({self.invalid} invalid, {self.timeout} timed out)",
                owner=f"reward {name}",
                why="; ".join(self.details[:SHOWN]),
                fix="repair the reward or the labels, or raise --reward-failure-limit",
            )


class Grader:
    """Grades samples with one reward.

    Args:
        reward: the plugin's object.
        name: of the reward, for errors.
        key: which number of a dict counts; None for a reward that returns numbers.
    """

    def __init__(self, reward: Reward, name: str, key: str | None) -> None:
        self._reward = reward
        self.name = name
        self._key = key

    async def grade(self, samples: Sequence[Sample], tally: Tally) -> None:
        """Set score and reward of every sample.

        Raises:
            RunError: the reward breaks its contract (M403, M404).
        """
        if not samples:
            return
        try:
            scores: list[Score] = await self._reward.score(samples)
        except MilesError:
            raise
        except Exception as error:
            scores = [Invalid(f"{type(error).__name__}: {error}") for _ in samples]
        self._check(scores, len(samples))
        for sample, score in zip(samples, scores, strict=True):
            self._set(sample, score, tally)

    def notices(self, metadata: Iterable[Mapping[str, Any]]) -> list[str]:
        """Lines about rows that will not be graded, for people to see."""
        return self._reward.unknown(metadata) if isinstance(self._reward, RowRewards) else []

    def with_key(self, key: str | None) -> Grader:
        """The same reward with another number of its dicts."""
        return Grader(self._reward, self.name, key)

    def by_rows(self, config: Config) -> Grader:
        """The same, except that rows choose their reward, also where the run's own is a function."""
        if isinstance(self._reward, RowRewards):
            return self
        return Grader(RowRewards(self._reward, self.name, config), self.name, self._key)

    async def close(self) -> None:
        """End the reward's processes and connections."""
        await self._reward.close()

    def _check(self, scores: object, count: int) -> None:
        if not isinstance(scores, Sequence):
            problem = f"returned {type(scores).__name__}, not a list of scores"
        elif len(scores) != count:
            problem = f"returned {len(scores)} scores for {count} samples"
        else:
            odd = next((score for score in scores if not isinstance(score, Scored | Invalid | Timeout)), None)
            if odd is None and None not in scores:
                return
            problem = f"returned {type(odd).__name__} for a sample, which is no Scored, Invalid or Timeout"
        raise RunError("M404", f"the reward {problem}", owner=f"reward {self.name}", fix="return one score per sample, in order")

    def _set(self, sample: Sample, score: Score, tally: Tally) -> None:
        if isinstance(score, Scored):
            value = self._number(score)
            if math.isfinite(value):
                sample.score, sample.reward = score, value
                tally.graded += 1
                return
            score = Invalid(f"the reward is {value}")
        sample.score, sample.reward = score, None
        if isinstance(score, Timeout):
            tally.timeout += 1
        else:
            tally.invalid += 1
        if len(tally.details) < SHOWN:
            tally.details.append(f"sample {sample.index}: {score.detail or type(score).__name__}")

    def _number(self, score: Scored) -> float:
        value: object = score.value
        if not isinstance(value, Mapping):
            number = _float(value)
            if number is None:
                raise RunError(
                    "M403",
                    f"the reward is {type(value).__name__}, neither a number nor a dict",
                    owner=f"reward {self.name}",
                    fix="return Scored(number), Scored(dict), Invalid or Timeout",
                )
            return number
        key = self._key
        picked = _float(value.get(key)) if key is not None else None
        if picked is None:
            raise RunError(
                "M403",
                f"the reward is a dict, and {'--reward-key is not set' if key is None else f'{key!r} in it is no number'}",
                owner=f"reward {self.name}",
                why=f"it has {', '.join(map(str, value)) or 'nothing'}",
                fix="name the number to train on with --reward-key",
            )
        return picked


class Ungraded(Grader):
    """For a run without a reward: samples stay as they are."""

    def __init__(self) -> None:
        self.name = "none"

    async def grade(self, samples: Sequence[Sample], tally: Tally) -> None:
        """Nothing to do."""

    def with_key(self, key: str | None) -> Grader:
        """Itself."""
        return self

    def by_rows(self, config: Config) -> Grader:
        """Itself."""
        return self

    async def close(self) -> None:
        """Nothing to end."""


def _float(value: object) -> float | None:
    """A number as a float, those of NumPy and the like included; None for anything else."""
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None
