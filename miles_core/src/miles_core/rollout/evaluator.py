"""Evaluations: every set of a run sampled, graded and measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from miles_core.config import LoggingOptions, RewardOptions, RolloutOptions
from miles_core.data.source import PromptSet, PromptSource
from miles_core.options import Config
from miles_core.rollout.collector import generate_graded
from miles_core.rollout.evaluation import EvaluationSet
from miles_core.rollout.generate import GenerateFunction
from miles_core.rollout.grading import Grader, Tally
from miles_core.rollout.log_functions import EvaluationLog
from miles_core.rollout.metrics import evaluation_metrics
from miles_core.rollout.optional_metrics import optional_evaluation_metrics
from miles_core.rollout.sampling import SamplingPlan
from miles_core.rollout.whole import EvaluationFunction, Groups, PromptDesk
from miles_core.samples import Sample, SamplingParams, Status
from miles_core.serving.client import EngineClient

Advance = Callable[[int, int], None]


class Evaluator:
    """Evaluates. Each prompt is sampled with the same seeds every time.

    Args:
        graders: of each set, by name.
        plan: how samples are made where a set says nothing: texts, functions and the seed are taken from it.
        functions: those of sets that have their own, by name of the set.
        hooks: functions that options name, by the name of their signature.
    """

    def __init__(
        self,
        sets: Sequence[tuple[EvaluationSet, PromptSet]],
        client: EngineClient,
        graders: Mapping[str, Grader],
        plan: SamplingPlan,
        functions: Mapping[str, GenerateFunction],
        hooks: Mapping[str, Any],
        config: Config,
    ) -> None:
        self._sets = list(sets)
        self._client = client
        self._graders = graders
        self._plan = plan
        self._functions = functions
        self._function: EvaluationFunction | None = hooks.get("eval_function")
        self._log: EvaluationLog | None = hooks.get("eval_rollout_log")
        self._config = config
        self._seed = config.get(RolloutOptions).rollout_seed

    async def evaluate(self, rollout_id: int, advance: Advance) -> tuple[dict[str, Groups], dict[str, float]]:
        """Samples of every set, and metrics.

        Args:
            rollout_id: of the rollout before it; -1 before the first.
            advance: told ``(done, total)`` samples.

        Raises:
            RunError: too many samples could not be graded (M402), an engine failed, or a function broke its contract (M326, M407).
        """
        groups = {each.name: _groups(prompts, each) for each, prompts in self._sets}
        total = sum(len(group) for each in groups.values() for group in each)
        advance(0, total)
        logging = self._config.get(LoggingOptions)
        metrics: dict[str, float] = {}
        if self._function is None:
            done = 0
            for number, (each, _) in enumerate(self._sets):
                await self._complete(number, rollout_id, groups[each.name], partial(_shifted, advance, done, total))
                done += sum(map(len, groups[each.name]))
                metrics |= evaluation_metrics(each.name, [sample for group in groups[each.name] for sample in group])
                metrics |= optional_evaluation_metrics(each.name, groups[each.name], logging)
        else:
            metrics |= await self._evaluate_by(self._function, rollout_id, groups, partial(_shifted, advance, 0, total))
        if self._log is not None:
            data = {name: _data([sample for group in found for sample in group]) for name, found in groups.items()}
            metrics = self._log(rollout_id, data, metrics)
        return groups, metrics

    async def _complete(self, number: int, rollout_id: int, groups: Groups, advance: Callable[[int], None]) -> None:
        each, plan = self._sets[number][0], self._plan
        params = SamplingParams(
            max_new_tokens=each.max_response_len,
            temperature=each.temperature,
            top_p=each.top_p,
            top_k=each.top_k,
            min_new_tokens=each.min_new_tokens,
            stop=each.stop,
            stop_token_ids=each.stop_token_ids,
            skip_special_tokens=plan.params.skip_special_tokens,
        )
        own = SamplingPlan(
            params,
            each.max_context_len,
            self._seed + 1 + number,
            f"eval-{rollout_id}-{number}",
            decode=plan.decode,
            encode=plan.encode,
            function=self._functions.get(each.name, plan.function),
            evaluation=True,
        )
        tally, grader = Tally(), self._graders[each.name]
        await generate_graded(self._client, groups, own, grader, tally, advance)
        tally.check(self._config.get(RewardOptions).reward_failure_limit, grader.name)

    async def _evaluate_by(
        self, function: EvaluationFunction, rollout_id: int, groups: dict[str, Groups], advance: Callable[[int], None]
    ) -> dict[str, float]:
        """Let a function of the user evaluate; what it returns by set is measured as core does it."""
        place = {id(group): number for number, (each, _) in enumerate(self._sets) for group in groups[each.name]}
        done = 0

        async def complete(chosen: Sequence[Sequence[Sample]]) -> None:
            nonlocal done
            numbers = {place.get(id(group), -1) for group in chosen}
            if -1 in numbers:
                raise function.error("generated a group that is of no set", "generate the groups of sets, as they are")
            for number in sorted(numbers):
                own = [list(group) for group in chosen if place[id(group)] == number]
                await self._complete(number, rollout_id, own, partial(_further, advance, done))
                done += sum(map(len, own))

        source = PromptDesk(PromptSource(self._sets[0][1], shuffle=False, seed=0), self._sets[0][0].n_samples_per_eval_prompt)
        found, metrics = await function(rollout_id, groups, complete, source)
        for name, data in found.items():
            rewards = [float(value) for value in data["rewards"] if value is not None]
            metrics[f"eval/{name}"] = statistics.fmean(rewards) if rewards else float("nan")
            truncated = data.get("truncated")
            if truncated:
                metrics[f"eval/{name}-truncated_ratio"] = sum(map(bool, truncated)) / len(truncated)
        return {name if "/" in name else f"eval/{name}": value for name, value in metrics.items()}


def _further(advance: Callable[[int], None], before: int, done: int) -> None:
    advance(before + done)


def _shifted(advance: Advance, before: int, total: int, done: int) -> None:
    advance(before + done, total)


def _data(samples: Sequence[Sample]) -> dict[str, Any]:
    """A set as functions that log see it."""
    return {
        "rewards": [sample.reward for sample in samples],
        "truncated": [sample.status is Status.TRUNCATED for sample in samples],
        "samples": list(samples),
    }


def _groups(prompts: PromptSet, each: EvaluationSet) -> Groups:
    n_samples = each.n_samples_per_eval_prompt
    groups: Groups = []
    for position in range(len(prompts)):
        group: list[Sample] = []
        for _ in range(n_samples):
            sample = prompts.sample(position)
            sample.metadata = each.amend(sample.metadata)
            sample.index, sample.group_index = position * n_samples + len(group), position
            group.append(sample)
        groups.append(group)
    return groups
