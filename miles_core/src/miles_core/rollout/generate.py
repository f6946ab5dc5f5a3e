"""Functions that make a sample's response, as ``--custom-generate-function-path`` names them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from miles_core.errors import MilesError, RunError
from miles_core.options import Config
from miles_core.plugins.adapters import Arguments
from miles_core.plugins.causes import describe
from miles_core.rollout.conversation import Conversation, CutOff
from miles_core.rollout.legacy_sample import LegacySample
from miles_core.samples import Sample, Status

if TYPE_CHECKING:
    from miles_core.rollout.agent import Agents

FLAG = "--custom-generate-function-path"


class GenerateFunction:
    """``async fn(sample, generate)``, ``async fn(sample, base_url)`` or ``async fn(args, sample, sampling_params)``: called once
    for each sample, all at once.

    The first form makes the response with :class:`miles_core.rollout.conversation.Conversation`. The second is an agent with a
    chat endpoint, see :mod:`miles_core.rollout.agent`. The third calls the engines itself, at ``args.sglang_router_ip`` and
    ``args.sglang_router_port``, and returns the sample with tokens, mask and log-probs.

    A function with the attribute ``resumes = True`` is called again, with the tokens that its sample has, when the rollout ended
    while it ran (``--partial-rollout``); the samples of any other then start anew.
    """

    def __init__(self, function: Callable[..., Any], call: tuple[str, ...], name: str, config: Config) -> None:
        self.name = name
        self._function = function
        self._arguments = Arguments(config) if call[0] == "args" else None
        self._resumes = bool(getattr(function, "resumes", False))
        self._tells = "evaluation" in inspect.signature(function).parameters
        self._agents: Agents | None = None
        if call[-1] == "base_url":
            from miles_core.rollout.agent import Agents

            self._agents = Agents(function, name, config)

    async def __call__(self, sample: Sample, generate: Conversation) -> None:
        """Make one sample in place; it stays unfinished when the rollout ended meanwhile.

        Raises:
            RunError: the function failed or broke its contract (M326, M350), or an engine failed.
        """
        if self._agents is not None:
            await self._agent(self._agents, sample, generate)
            return
        start, metadata = Sample(), copy.deepcopy(sample.metadata)
        if sample.response_ids and not self._resumes:
            _reset(sample, start, metadata)
        identity = (sample.index, sample.group_index, list(sample.prompt_ids))
        before = list(sample.response_ids)
        sample.status = Status.PENDING
        try:
            await (self._native(sample, generate) if self._arguments is None else self._legacy(sample, generate))
        except CutOff:
            if self._resumes:
                sample.status = Status.ABORTED
            else:
                _reset(sample, start, metadata)
            return
        except MilesError:
            raise
        except (Exception, SystemExit) as error:
            raise self.error(f"failed with {describe(error)}", "repair the function") from error
        same = (sample.index, sample.group_index, sample.prompt_ids) == identity
        if not same or sample.response_ids[: len(before)] != before:
            raise self.error("changed tokens or numbers that a sample had", "only append: generate() and generate.observe() do")
        try:
            sample.check()
        except ValueError as error:
            raise self.error(f"left a sample that contradicts itself: {error}", "append with generate.observe()") from error
        if not sample.finished:
            sample.status = Status.COMPLETED

    async def _native(self, sample: Sample, generate: Conversation) -> None:
        answer = self._function(sample, generate)
        answer = await answer if inspect.isawaitable(answer) else answer
        if answer is not None and answer is not sample:
            raise self.error(f"returned {type(answer).__name__}", "change the sample that it is given, and return nothing")

    async def _agent(self, agents: Agents, sample: Sample, generate: Conversation) -> None:
        start, metadata = Sample(prompt_ids=list(sample.prompt_ids)), copy.deepcopy(sample.metadata)
        _reset(sample, start, metadata)
        try:
            await agents.make(sample, generate)
        except CutOff:
            sample.prompt_ids = start.prompt_ids
            _reset(sample, start, metadata)

    async def _legacy(self, sample: Sample, generate: Conversation) -> None:
        assert self._arguments is not None
        given = LegacySample.of(sample)
        params = generate.params_document(sample)
        further = {"evaluation": generate.evaluation} if self._tells else {}
        arguments = generate.arguments(self._arguments)
        answer = self._function(arguments, given, params, **further)
        answer = await answer if inspect.isawaitable(answer) else answer
        if isinstance(answer, list) and len(answer) == 1:
            (answer,) = answer
        if not isinstance(answer, LegacySample):
            what = f"{len(answer)} samples" if isinstance(answer, list) else type(answer).__name__
            raise self.error(f"returned {what}", "return the sample that it is given")
        try:
            answer.settle(sample)
        except ValueError as error:
            raise self.error(f"returned a sample that contradicts itself: {error}", "return tokens, mask and log-probs") from error

    def error(self, what: str, fix: str) -> RunError:
        """A breach of the function's contract."""
        return RunError("M326", f"the function {what}", owner=f"{FLAG} {self.name}", fix=fix)


def _reset(sample: Sample, start: Sample, metadata: dict[str, Any]) -> None:
    """Back to the prompt alone."""
    for name in ("response_ids", "response", "loss_mask", "rollout_log_probs", "weight_versions", "routed_experts", "status"):
        setattr(sample, name, copy.copy(getattr(start, name)))
    sample.metadata = metadata
