"""The rollout manager: from prompts to training rows, and evaluations."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miles_core.config import (
    DataOptions,
    DebugOptions,
    ExternalOptions,
    FaultToleranceOptions,
    LoggingOptions,
    LoopOptions,
    RewardOptions,
    RolloutOptions,
    RouterOptions,
    RoutingOptions,
    SamplingOptions,
    TeacherOptions,
)
from miles_core.config.fault_tolerance import RESTART_SECONDS
from miles_core.data.source import Keys, PromptSet, PromptSource
from miles_core.data.supervised import SupervisedSource
from miles_core.data.tokens import PromptTokenizer
from miles_core.debug.paths import fill
from miles_core.debug.rollout_file import write_rollout
from miles_core.options import Config
from miles_core.plugins import PluginRef, create
from miles_core.plugins.adhoc import load_adhoc, packaged
from miles_core.protocols import Advantage, Filter, Reward
from miles_core.rollout.buffer import GroupBuffer
from miles_core.rollout.collector import Collected, Collector, Refill, generate_graded
from miles_core.rollout.conversion import to_rows
from miles_core.rollout.evaluation import EvaluationSet, evaluation_sets
from miles_core.rollout.evaluator import Evaluator
from miles_core.rollout.external.setup import make_external
from miles_core.rollout.external.source import ExternalSource
from miles_core.rollout.grading import Grader, Tally, Ungraded
from miles_core.rollout.metrics import rollout_metrics
from miles_core.rollout.optional_metrics import optional_rollout_metrics
from miles_core.rollout.record import Recorder
from miles_core.rollout.row_rewards import KEY, RowRewards
from miles_core.rollout.sampling import SamplingPlan
from miles_core.rollout.shaping import OverlongShaping
from miles_core.rollout.sieve import Sieve
from miles_core.rollout.stream import Lane, Stream
from miles_core.rollout.teacher import TeacherClient
from miles_core.rollout.whole import PromptDesk, RolloutFunction
from miles_core.runtime.experts import Experts, experts_of
from miles_core.runtime.loops.schedule import Schedule
from miles_core.runtime.plan import Front, RunPlan
from miles_core.samples import Sample, SamplingParams
from miles_core.serving.client import MOST_CALLS, EngineClient
from miles_core.training.rows import TrainRow

ROLLOUT_HOOKS = (
    *("buffer_filter", "sample_filter", "all_samples", "reward_post_process", "convert"),
    *("generate", "rollout_function", "rollout_log", "eval_function", "eval_rollout_log"),
)
"""Functions named by options that are called here."""
CONCURRENCY = "concurrency:"
"""In front of the flag, among an engine's capabilities, of the option that says how many calls it takes at a time."""
EXAMPLES = 2
"""Samples of a rollout that go to the driver."""


@dataclass(frozen=True)
class ManagerInfo:
    """What the manager found in the data: prompts that are used and dropped, and lines to show."""

    prompts: int
    dropped: int
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RolloutResult:
    """One rollout."""

    rows: list[TrainRow]
    metrics: dict[str, float]
    examples: list[dict[str, Any]]


class RolloutManager:
    """Lives in a process of its own. Call :meth:`start` first; the rest one at a time, :meth:`progress` at any time."""

    def __init__(self, config: Config, plan: RunPlan) -> None:
        self._config = config
        self._plan = plan
        self._progress = {"done": 0, "total": 0}
        self._version = 0
        self._grader: Grader | None = None
        self._client: EngineClient | None = None
        self._collector: Collector | None = None
        self._stream: Stream | None = None
        self._taken = 0.0
        self._teacher: TeacherClient | None = None
        self._evaluator: Evaluator | None = None
        self._row_grader: Grader | None = None
        self._external: ExternalSource | None = None

    async def start(self, urls: Sequence[str], front: Front | None = None) -> ManagerInfo:
        """Read and tokenise the data, make the graders, connect to the engines at ``urls``, by the router in front of them.

        Raises:
            UsageError: the data cannot be used (M301 to M321).
        """
        data, options = self._config.get(DataOptions), self._config.get(RolloutOptions)
        plugins = self._plan.plugins
        self._hooks = {name: create(ref, self._config) for name, ref in plugins.functions.items() if name in ROLLOUT_HOOKS}
        tokenizer = PromptTokenizer(
            self._plan.checkpoint, apply_chat_template=data.apply_chat_template, template_options=data.apply_chat_template_kwargs
        )
        self._tokenizer = tokenizer
        details = self._config.get(DebugOptions).dump_details
        if details is not None:
            tokenizer.tokenizer.save_pretrained(Path(details).expanduser() / "tokenizer")
        self._recorder = Recorder(self._plan.run_dir / "samples", self._decode, tokenizer.decode_all)
        keys = Keys(data.input_key, data.label_key, data.metadata_key, data.tool_key, data.multimodal_keys or {})
        self._plan.run_dir.mkdir(parents=True, exist_ok=True)
        assert data.prompt_data is not None
        prompts: PromptSet | None = None
        if plugins.supervised:
            self._supervised = SupervisedSource(
                data.prompt_data,
                keys,
                tokenizer,
                templated=data.apply_chat_template,
                shuffle=options.rollout_shuffle,
                seed=options.rollout_seed,
                max_tokens=options.rollout_max_context_len,
                scratch=self._plan.run_dir,
            )
            self._source: PromptSource | SupervisedSource = self._supervised
            info = ManagerInfo(len(self._supervised), self._supervised.dropped)
        else:
            prompts = PromptSet(data.prompt_data, keys, tokenizer, self._max_prompt(), self._plan.run_dir)
            self._source = PromptSource(prompts, shuffle=options.rollout_shuffle, seed=options.rollout_seed)
            info = ManagerInfo(len(prompts), prompts.dropped)
        if info.dropped:
            info.notices.append(
                f"{info.dropped} of {info.dropped + info.prompts} rows of {data.prompt_data} are too long and left out"
            )
        sets = [(each, self._evaluation_prompts(each)) for each in evaluation_sets(self._config)]
        info.notices.extend(f"{p.dropped} prompts of {e.name} are too long and left out" for e, p in sets if p.dropped)
        if plugins.engine is not None:
            self._engines, self._front = tuple(urls), front
            self._client = self._engine_client(urls)
        if plugins.reward is not None:
            rewards = self._config.get(RewardOptions)
            self._grader = self._make_grader(plugins.reward, rewards.reward_key)
            named = Counter(prompts.rewards) if prompts is not None else Counter()
            for each, found in sets:
                named += Counter({each.rm_type: len(found)}) if each.rm_type is not None else found.rewards
            info.notices.extend(self._grader.notices({KEY: name} for name in named.elements()))
        self._advantage: Advantage | None = create(plugins.advantage, self._config) if plugins.advantage else None
        if not plugins.supervised:
            assert self._client is not None
            # Validation lets a run do without a reward only when its estimator reads none.
            self._grader = self._grader or Ungraded()
            self._teacher = await self._open_teacher()
            assert isinstance(self._source, PromptSource)
            filters = [create(ref, self._config) for ref in plugins.filters]
            limit = self._config.get(RewardOptions).reward_failure_limit
            size = self._plan.batch.n_samples
            self._collector = Collector(
                self._client, self._source, self._grader, filters, size, limit, self._make_buffer(), self._refill()
            )
            if self._config.get(ExternalOptions).rollout_buffer_url is not None:
                self._external = make_external(self._config, self._plan, self._client.urls, filters, self._decode)
                await self._external.client.check()
            if self._config.get(LoopOptions).loop == "async":
                self._stream = self._make_stream(filters)
        if sets:
            self._evaluator = self._make_evaluator(sets)
        return info

    async def generate(self, rollout_id: int, version: int | None = None) -> RolloutResult:
        """One rollout of ``--rollout-batch-size`` groups.

        Args:
            version: that engines serve when the rollout is trained on; None takes the newest that was seen.

        Raises:
            RunError: see :class:`miles_core.rollout.collector.Collector`; or too many samples could not be graded (M402).
        """
        count = self._plan.batch.rollout_batch_size
        started = time.perf_counter()
        if self._collector is None:
            samples = self._supervised.next_samples(count)
            metrics = {"perf/rollout_time": time.perf_counter() - started}
            self._save_samples(rollout_id, samples, metrics)
            examples = self._recorder.write(f"rollout_{rollout_id}", samples)
            return RolloutResult(self._rows(samples, None), metrics, examples[:EXAMPLES])
        plan = self._sampling_plan(f"rollout-{rollout_id}")
        if "rollout_function" in self._hooks:
            collected = await self._collect_by(self._hooks["rollout_function"], rollout_id, plan)
        elif self._external is not None:
            collected = await self._external.collect(count, self._advance)
        elif self._stream is not None:
            collected = await self._stream.take(rollout_id)
            started, self._taken = self._taken, time.perf_counter()
        else:
            collected = await self._collector.collect(count, plan, self._advance, rollout_id)
        seconds = time.perf_counter() - started
        samples = [sample for group in collected.groups for sample in group]
        versions = [version for sample in [*samples, *collected.generated] for version, _ in sample.weight_versions]
        self._version = max([self._version, *versions]) if version is None else version
        placement = self._plan.placement
        metrics = rollout_metrics(collected, seconds, placement.engines * placement.devices_per_engine, self._version)
        metrics |= optional_rollout_metrics(collected.groups, self._config.get(LoggingOptions))
        metrics |= collected.metrics
        if "sample_filter" in self._hooks:
            self._hooks["sample_filter"](collected.groups)
        metrics["rollout/removed_samples"] = float(sum(sample.removed for sample in samples))
        if self._teacher is not None:
            limit = self._config.get(RewardOptions).reward_failure_limit
            metrics |= (await self._teacher.score(samples, limit, self._advance)).metrics()
        if "all_samples" in self._hooks:
            self._hooks["all_samples"](collected.finished, self._more_groups)
        penalty = self._overlong()
        if penalty is not None:
            metrics["rollout/overlong_penalty"] = statistics.fmean(map(penalty, samples))
        self._save_samples(rollout_id, samples, metrics)
        rows = self._rows(samples, penalty)
        dropped = [group for group in collected.finished if group[0].group_index in collected.reasons]
        examples = self._recorder.write(f"rollout_{rollout_id}", samples, dropped, collected.reasons)
        if "rollout_log" in self._hooks:
            metrics = self._hooks["rollout_log"](rollout_id, samples, metrics, seconds)
        return RolloutResult(rows, metrics, examples[:EXAMPLES])

    async def evaluate(self, rollout_id: int) -> dict[str, float]:
        """Evaluate every set; each prompt is sampled with the same seeds every time."""
        assert self._evaluator is not None
        groups, metrics = await self._evaluator.evaluate(rollout_id, self._advance)
        generated: list[Sample] = []
        for name, found in groups.items():
            samples = [sample for group in found for sample in group]
            # A function that evaluates leaves out what it likes.
            finished = [sample for sample in samples if sample.finished]
            if finished:
                self._recorder.write(f"eval_{name}_{rollout_id + 1}", finished)
            generated += finished
        self._save_samples(f"eval_{rollout_id + 1}", generated, metrics)
        return metrics

    def state(self) -> dict[str, Any]:
        """What must be saved to go on from here; plain JSON."""
        buffer = [] if self._collector is None else (self._stream or self._collector.buffer).state()
        state = {"source": self._source.state(), "buffer": buffer}
        return state if self._external is None else {**state, "external": self._external.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            UsageError: the data or the samples per prompt are not those of the saved state (M316, M409).
        """
        self._source.load_state(state["source"])
        if self._external is not None and "external" in state:
            self._external.load_state(state["external"])
        if self._stream is not None:
            self._stream.load_state(state["buffer"])
        elif self._collector is not None:
            self._collector.buffer.load_state(state["buffer"], self._plan.batch.n_samples)

    def published(self, rollout_id: int, version: int) -> None:
        """Engines serve ``version`` since ``rollout_id`` was trained on; what is generated all the time goes on from there."""
        if self._stream is not None:
            self._stream.published(rollout_id, version)

    def progress(self) -> dict[str, int]:
        """Samples done and in all of what is going on."""
        return dict(self._progress)

    async def close(self) -> None:
        """End graders and connections."""
        if self._stream is not None:
            await self._stream.close()
        if self._grader is not None:
            await (self._row_grader or self._grader).close()
        if self._client is not None:
            await self._client.close()
        if self._external is not None:
            await self._external.client.close()
        if self._teacher is not None:
            await self._teacher.close()

    def _engine_client(self, urls: Sequence[str]) -> EngineClient:
        engine = self._plan.plugins.engine
        assert engine is not None
        flags = [each.partition(":")[2] for each in engine.capabilities if each.startswith(CONCURRENCY)]
        # While an engine is started again its requests wait in the router.
        restart = RESTART_SECONDS if self._config.get(FaultToleranceOptions).use_fault_tolerance else 0.0
        most = int(self._config.by_flag(flags[0])) if flags else MOST_CALLS
        front = self._front
        return EngineClient(
            urls if front is None else [front.url],
            batch_stream="batch_stream" in engine.capabilities,
            timeout=self._config.get(RolloutOptions).rollout_request_timeout + restart,
            max_connections=most if front is None else most * len(urls),
            abort_urls=urls if front is not None and not front.tells_all else None,
            api_key=self._config.get(RouterOptions).miles_router_api_key,
        )

    def _advance(self, done: int, total: int) -> None:
        self._progress = {"done": done, "total": total}

    async def _open_teacher(self) -> TeacherClient | None:
        """The server that scores responses, where the estimator needs one; it has proved to work."""
        options = self._config.get(TeacherOptions)
        if self._advantage is None or "teacher_log_probs" not in self._advantage.needs or options.teacher_url is None:
            return None
        assert isinstance(self._source, PromptSource)
        client = TeacherClient(options, self._config.get(RolloutOptions).rollout_temperature)
        prompt = self._source.prompts.sample(0).prompt_ids
        try:
            await client.check(prompt if len(prompt) > 1 else prompt * 2)
        except BaseException:
            await client.close()
            raise
        return client

    def _routed(self) -> Experts | None:
        """How the model's routes look, where the engines are to tell them."""
        wanted = self._config.get(RoutingOptions).use_rollout_routing_replay
        return experts_of(self._plan.checkpoint) if wanted else None

    def _sampling_plan(self, label: str) -> SamplingPlan:
        """How the samples of a rollout are made."""
        options = self._config.get(RolloutOptions)
        params = SamplingParams(
            max_new_tokens=options.rollout_max_response_len or 0,
            temperature=options.rollout_temperature,
            top_p=options.rollout_top_p,
            top_k=options.rollout_top_k,
            stop=tuple(options.rollout_stop or ()),
            stop_token_ids=tuple(options.rollout_stop_token_ids or ()),
            skip_special_tokens=options.rollout_skip_special_tokens,
        )
        return SamplingPlan(
            params,
            options.rollout_max_context_len,
            options.rollout_seed,
            label,
            self._routed(),
            self._decode,
            self._encode,
            self._hooks.get("generate"),
        )

    def _make_evaluator(self, sets: Sequence[tuple[EvaluationSet, PromptSet]]) -> Evaluator:
        assert self._client is not None
        assert self._grader is not None
        rewards = self._config.get(RewardOptions)
        grader = self._grader.with_key(rewards.eval_reward_key or rewards.reward_key)
        self._row_grader = grader.by_rows(self._config)
        graders = {each.name: self._row_grader if each.rm_type is not None else grader for each, _ in sets}
        functions = {
            each.name: create(load_adhoc(packaged(each.custom_generate_function_path), "generate", "--eval-config"), self._config)
            for each, _ in sets
            if each.custom_generate_function_path is not None
        }
        plan = self._sampling_plan("eval")
        return Evaluator(sets, self._client, graders, plan, functions, self._hooks, self._config)

    async def _collect_by(self, function: RolloutFunction, rollout_id: int, plan: SamplingPlan) -> Collected:
        """A rollout that a function of the user collects, in place of the collector."""
        assert self._client is not None
        assert self._grader is not None
        assert isinstance(self._source, PromptSource)
        client, grader, tally = self._client, self._grader, Tally()
        self._advance(0, 0)

        async def complete(groups: Sequence[Sequence[Sample]]) -> None:
            await generate_graded(client, groups, plan, grader, tally, lambda done: self._advance(done, done))

        desk = PromptDesk(self._source, self._plan.batch.n_samples)
        groups, metrics = await function(rollout_id, desk, complete)
        for sample in (sample for group in groups for sample in group):
            if sample.reward is None and sample.score is None and not isinstance(grader, Ungraded):
                raise function.error(f"returned sample {sample.index} without a reward", "await generate(groups), or set reward")
        tally.check(self._config.get(RewardOptions).reward_failure_limit, grader.name)
        tokens = sum(sample.response_length for group in groups for sample in group)
        return Collected(groups, tally, groups, submissions=1, tokens=tokens, metrics=metrics)

    def _make_stream(self, filters: Sequence[Filter]) -> Stream:
        assert self._grader is not None
        assert isinstance(self._source, PromptSource)
        assert self._client is not None
        batch = self._plan.batch
        self._taken = time.perf_counter()
        return Stream(
            [Lane(self._engine_client([url])) for url in self._engines] if self._front is None else [Lane(self._client)],
            self._source,
            self._grader,
            Sieve(filters, batch.rollout_batch_size),
            batch.n_samples,
            batch.rollout_batch_size,
            self._sampling_plan("rollout-async"),
            Schedule.of(self._config, batch.num_rollout),
            self._config.get(LoopOptions).max_staleness,
            self._config.get(RewardOptions).reward_failure_limit,
            self._advance,
        )

    def _make_buffer(self) -> GroupBuffer:
        pick = self._hooks.get("buffer_filter")
        return GroupBuffer() if pick is None else GroupBuffer(pick, pick.name)

    def _refill(self) -> Refill:
        options = self._config.get(SamplingOptions)
        return Refill(options.over_sampling_batch_size, options.partial_rollout, options.mask_offpolicy_in_partial_rollout)

    def _overlong(self) -> OverlongShaping | None:
        options = self._config.get(RewardOptions)
        if not options.overlong_buffer_ratio:
            return None
        limit = self._config.get(RolloutOptions).rollout_max_response_len
        assert limit is not None
        return OverlongShaping(limit, options.overlong_buffer_ratio, options.overlong_penalty_factor)

    def _save_samples(self, rollout_id: int | str, samples: Sequence[Sample], metrics: Mapping[str, float]) -> None:
        """``--save-debug-rollout-data``: what is left to do is to make rows of them."""
        template = self._config.get(DebugOptions).save_debug_rollout_data
        if template is not None:
            write_rollout(fill(template, rollout_id=rollout_id), rollout_id, samples, metrics)

    def _rows(self, samples: Sequence[Sample], penalty: OverlongShaping | None) -> list[TrainRow]:
        if "convert" in self._hooks:
            rows: list[TrainRow] = self._hooks["convert"](samples)
            return rows
        return to_rows(samples, self._advantage, penalty=penalty, post_process=self._hooks.get("reward_post_process"))

    def _more_groups(self, count: int) -> list[list[Sample]]:
        """Fresh groups for a function that asks for them; their prompts are used with that."""
        assert isinstance(self._source, PromptSource)
        groups = self._source.next_groups(count, self._plan.batch.n_samples)
        self._source.use(group[0].group_index for group in groups)
        return groups

    def _decode(self, ids: Sequence[int]) -> str:
        skip = self._config.get(RolloutOptions).rollout_skip_special_tokens
        text: str = self._tokenizer.tokenizer.decode(list(ids), skip_special_tokens=skip)
        return text

    def _encode(self, text: str) -> list[int]:
        """Ids of a piece of text that goes on from others."""
        return self._tokenizer.encode([text], templated=True)[0]

    def _max_prompt(self) -> int | None:
        options = self._config.get(RolloutOptions)
        limits = [options.rollout_max_prompt_len]
        if options.rollout_max_context_len is not None:
            limits.append(options.rollout_max_context_len - 1)
        return min((limit for limit in limits if limit is not None), default=None)

    def _evaluation_prompts(self, each: EvaluationSet) -> PromptSet:
        media = self._config.get(DataOptions).multimodal_keys or {}
        keys = Keys(each.input_key, each.label_key, each.metadata_key, each.tool_key, media)
        return PromptSet(each.path, keys, self._tokenizer, each.max_prompt_len, self._plan.run_dir)

    def _make_grader(self, ref: PluginRef, key: str | None) -> Grader:
        reward: Reward = create(ref, self._config)
        if ref.adapter is None:
            reward = RowRewards(reward, ref.name, self._config)
        return Grader(reward, ref.name, key)
