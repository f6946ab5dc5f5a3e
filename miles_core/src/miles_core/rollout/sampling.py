"""Prompts through the engines."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from miles_core.data.media import engine_data
from miles_core.errors import RunError
from miles_core.rollout.conversation import converse
from miles_core.rollout.generate import GenerateFunction
from miles_core.rollout.routing import keep_routes
from miles_core.runtime.experts import Experts
from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, Sample, SamplingParams, Status
from miles_core.serving.client import EngineClient

_STATUS = {FinishReason.STOP: Status.COMPLETED, FinishReason.LENGTH: Status.TRUNCATED, FinishReason.ABORT: Status.ABORTED}
FRUITLESS_TRIES = 20


@dataclass(frozen=True)
class SamplingPlan:
    """How a batch of samples is generated.

    Attributes:
        params: of every sample; the seed is the sample's own.
        max_context: most tokens of prompt and response together; None for no limit.
        seed: makes each sample's draw a function of this and its index, so that a resumed run draws the same.
        label: makes request ids unique, such as ``rollout-3``.
        experts: of the model, when its routes are asked for too; None asks for none.
        decode: text of a response's ids, for one that was made in parts: a character may be split between them.
        encode: ids of a piece of text, nothing added, for what a function appends.
        function: makes each sample in place of one request; None for that.
        evaluation: whether the samples are for an evaluation.
    """

    params: SamplingParams
    max_context: int | None
    seed: int
    label: str
    experts: Experts | None = None
    decode: Callable[[Sequence[int]], str] | None = None
    encode: Callable[[str], list[int]] | None = None
    function: GenerateFunction | None = None
    evaluation: bool = False

    def request(self, sample: Sample) -> GenerateRequest | None:
        """The request that completes a sample, from what it has on; None when there is no room for another token.

        The prompt and the tokens that it has are the engine's input, as ids, and count against the limit on new tokens.
        """
        have = sample.response_length
        room = self.params.max_new_tokens - have
        if self.max_context is not None:
            room = min(room, self.max_context - len(sample.prompt_ids) - have)
        if room <= 0:
            return None
        params = replace(
            self.params,
            max_new_tokens=room,
            min_new_tokens=max(0, self.params.min_new_tokens - have),
            sampling_seed=sample_seed(self.seed, sample.index, have),
        )
        routed = self.experts is not None
        media = {kind: tuple(map(engine_data, items)) for kind, items in sample.media.items()} or None
        return GenerateRequest(f"{self.label}-{sample.index}", sample.tokens, params, return_routed_experts=routed, media=media)


def sample_seed(seed: int, index: int, have: int = 0) -> int:
    """A seed for one sample, spread over 48 bits. One that goes on after ``have`` tokens must not draw as it did at its start."""
    text = f"{seed}:{index}:{have}" if have else f"{seed}:{index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


async def generate(
    client: EngineClient, groups: Sequence[Sequence[Sample]], plan: SamplingPlan, stopping: Callable[[], bool] = lambda: False
) -> AsyncGenerator[Sequence[Sample], None]:
    """Complete every unfinished sample of every group in place; yields each group when its last sample ended.

    All requests go out as one ordered batch: with a deterministic engine the same call gives the same tokens. What engines cut
    off, as they do for new weights, goes out again from where it stopped once the batch is through, unless ``stopping`` says
    that it is to stay as it is; such groups are not yielded. Closing the generator early aborts what still runs.

    Raises:
        RunError: the engines cut the same samples off ``FRUITLESS_TRIES`` times without a token between (M405), or the function
            that makes samples broke its contract (M326).
    """
    if plan.function is not None:
        about = {"function": plan.function.name, "evaluation": plan.evaluation}
        async with aclosing(converse(client, groups, plan, plan.function, stopping, **about)) as made_groups:
            async for group in made_groups:
                yield group
        return
    tries = 0
    unfinished = list(groups)
    while unfinished:
        place, requests = _requests(unfinished, plan, tries)
        for group in unfinished:
            if all(sample.finished for sample in group):
                yield group
        if not requests:
            return
        made = 0
        async with aclosing(client.generate(requests)) as results:
            async for result in results:
                group, sample = place.pop(result.rid)
                goes_on = sample.response_length > 0
                complete(sample, result)
                if goes_on and plan.decode is not None:
                    sample.response = plan.decode(sample.response_ids)
                if plan.experts is not None:
                    keep_routes(sample, result, plan.experts)
                made += len(result.output_ids)
                if sample.finished and all(sibling.finished for sibling in group):
                    yield group
        if stopping():
            return
        unfinished = [group for group in unfinished if not all(sample.finished for sample in group)]
        tries = 0 if made else tries + 1
        if unfinished and tries >= FRUITLESS_TRIES:
            left = sum(not sample.finished for group in unfinished for sample in group)
            raise RunError(
                "M405",
                f"engines cut off {left} samples {FRUITLESS_TRIES} times in a row without making a token",
                owner="miles-core",
                fix="see the engines' logs: something keeps aborting their requests",
            )


def _requests(
    groups: Sequence[Sequence[Sample]], plan: SamplingPlan, tries: int
) -> tuple[dict[str, tuple[Sequence[Sample], Sample]], list[GenerateRequest]]:
    """Requests of the samples that are not finished, and whose they are; a sample without room is finished here."""
    place: dict[str, tuple[Sequence[Sample], Sample]] = {}
    requests: list[GenerateRequest] = []
    for group in groups:
        for sample in group:
            if sample.finished:
                continue
            request = plan.request(sample)
            if request is None:
                sample.status = Status.TRUNCATED
                continue
            if sample.response_length or tries:
                # An engine may still hold what it knew of the sample under its first id.
                request = replace(request, rid=f"{request.rid}-{sample.response_length}-{tries}")
            place[request.rid] = (group, sample)
            requests.append(request)
    return place, requests


def complete(sample: Sample, result: GenerateResult) -> None:
    """Append what the engine made. Tokens of a sample that has a loss mask are trained on, as all are of one that has none.

    Raises:
        ValueError: the engine's ids and log-probs differ in number.
    """
    sample.response_ids.extend(result.output_ids)
    if sample.rollout_log_probs is None:
        sample.rollout_log_probs = []
    sample.rollout_log_probs.extend(result.log_probs)
    if sample.loss_mask is not None:
        sample.loss_mask.extend([1] * len(result.output_ids))
    sample.response += result.text
    _count_version(sample.weight_versions, result.weight_version, len(result.output_ids))
    sample.status = _STATUS[result.finish_reason]
    sample.check()


def _count_version(runs: list[tuple[int, int]], version: int, tokens: int) -> None:
    """Add tokens of a version; an answer without a token leaves a version only where there is no other."""
    if runs and runs[-1][1] == 0:
        runs.pop()
    if runs and (not tokens or runs[-1][0] == version):
        runs[-1] = (runs[-1][0], runs[-1][1] + tokens)
    else:
        runs.append((version, tokens))
