"""Functions that make a whole rollout or evaluate, as ``--rollout-function-path`` and ``--eval-function-path`` name them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from miles_core.data.source import PromptSource
from miles_core.errors import MilesError
from miles_core.plugins.causes import describe
from miles_core.rollout.hooks import Hook
from miles_core.rollout.log_functions import numbers
from miles_core.samples import Sample

Groups = list[list[Sample]]
Complete = Callable[[Sequence[Sequence[Sample]]], Awaitable[None]]
"""Generates and grades groups in place."""


class PromptDesk:
    """What a rollout function gets as its source: prompts of the run, in order.

    Args:
        n_samples: samples of a group.
    """

    def __init__(self, source: PromptSource, n_samples: int) -> None:
        self._source = source
        self._n_samples = n_samples
        self._given_back: set[int] = set()

    def get_samples(self, num_samples: int) -> Groups:
        """The next groups of fresh samples."""
        return self._source.next_groups(num_samples, self._n_samples)

    def add_samples(self, groups: Sequence[Sequence[Sample]]) -> None:
        """Give back groups that are not used: their prompts come first in the next rollout, under their old numbers."""
        self._given_back |= {group[0].group_index for group in groups}

    def settle(self) -> None:
        """End the rollout."""
        self._source.settle(sorted(self._given_back))
        self._given_back = set()

    __call__ = get_samples


class WholeHook(Hook):
    """A function that is async, or runs in a thread of its own."""

    async def answer(self, *arguments: Any, **further: Any) -> Any:
        """What the function answers.

        Raises:
            RunError: M407.
        """
        try:
            if inspect.iscoroutinefunction(self._function):
                return await self._function(*self._leading, *arguments, **further)
            answer = await asyncio.to_thread(self._function, *self._leading, *arguments, **further)
            return await answer if inspect.isawaitable(answer) else answer
        except MilesError:
            raise
        except (Exception, SystemExit) as error:
            raise self.error(f"failed with {describe(error)}", "repair the function") from error

    def _evaluation(self, said: bool) -> dict[str, bool]:
        return {"evaluation": said} if self._leading and "evaluation" in inspect.signature(self._function).parameters else {}


class RolloutFunction(WholeHook):
    """``fn(rollout_id, source, generate)`` or ``fn(args, rollout_id, data_source)``, with ``evaluation=False`` if it takes that."""

    flag = "--rollout-function-path"

    async def __call__(self, rollout_id: int, source: PromptDesk, generate: Complete) -> tuple[Groups, dict[str, float]]:
        """Groups of graded samples, and metrics of the function's own."""
        further = () if self._leading else (generate,)
        answer = await self.answer(rollout_id, source, *further, **self._evaluation(False))
        source.settle()
        groups, metrics = (getattr(answer, "samples", answer), getattr(answer, "metrics", None) or {})
        fix = "return a list of groups, each a list of finished and graded samples"
        if not isinstance(groups, list) or not groups:
            raise self.error(f"returned {type(groups).__name__ if not isinstance(groups, list) else 'no group'}", fix)
        for group in groups:
            if not isinstance(group, list) or not group or not all(isinstance(sample, Sample) for sample in group):
                raise self.error("returned a group that is no list of samples", fix)
        samples = [sample for group in groups for sample in group]
        if len({id(sample) for sample in samples}) < len(samples) or len({sample.index for sample in samples}) < len(samples):
            raise self.error("returned a sample twice", fix)
        for sample in samples:
            if not sample.finished:
                raise self.error(f"returned sample {sample.index} unfinished: its status is {sample.status}", fix)
            try:
                sample.check()
            except ValueError as error:
                raise self.error(f"returned a sample that contradicts itself: {error}", fix) from error
        return groups, numbers(metrics, self)


class EvaluationFunction(WholeHook):
    """``fn(rollout_id, sets, generate)`` or ``fn(args, rollout_id, data_source)``, with ``evaluation=True`` if it takes that."""

    flag = "--eval-function-path"

    async def __call__(
        self, rollout_id: int, sets: Mapping[str, Groups], generate: Complete, source: Any
    ) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
        """What the function found: ``rewards`` and more by set, and metrics of its own; either may be empty."""
        given = (source,) if self._leading else (dict(sets), generate)
        answer = await self.answer(rollout_id, *given, **self._evaluation(True))
        data, metrics = getattr(answer, "data", answer), getattr(answer, "metrics", None) or {}
        fix = "return metrics, {name: number}, or {name: {'rewards': [...]}} by evaluation set"
        if not isinstance(data, Mapping):
            raise self.error(f"returned {type(data).__name__}", fix)
        found = {str(name): dict(value) for name, value in data.items() if isinstance(value, Mapping)}
        for name, value in found.items():
            if not isinstance(value.get("rewards"), list) or not value["rewards"]:
                raise self.error(f"returned no rewards for {name}", fix)
        own = {name: value for name, value in data.items() if name not in found}
        return found, numbers({**own, **metrics}, self)
