"""Prompts through the engines."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, Sample, SamplingParams, Status
from miles_core.serving.client import EngineClient

_STATUS = {FinishReason.STOP: Status.COMPLETED, FinishReason.LENGTH: Status.TRUNCATED, FinishReason.ABORT: Status.ABORTED}


@dataclass(frozen=True)
class SamplingPlan:
    """How a batch of samples is generated.

    Attributes:
        params: of every sample; the seed is the sample's own.
        max_context: most tokens of prompt and response together; None for no limit.
        seed: makes each sample's draw a function of this and its index, so that a resumed run draws the same.
        label: makes request ids unique, such as ``rollout-3``.
    """

    params: SamplingParams
    max_context: int | None
    seed: int
    label: str

    def request(self, sample: Sample) -> GenerateRequest | None:
        """The request of a sample; None when its prompt leaves no room for a response."""
        room = self.params.max_new_tokens
        if self.max_context is not None:
            room = min(room, self.max_context - len(sample.prompt_ids))
        if room <= 0:
            return None
        params = replace(self.params, max_new_tokens=room, sampling_seed=sample_seed(self.seed, sample.index))
        return GenerateRequest(f"{self.label}-{sample.index}", sample.prompt_ids, params)


def sample_seed(seed: int, index: int) -> int:
    """A seed for one sample, spread over 48 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=6).digest(), "big")


async def generate(
    client: EngineClient, groups: Sequence[Sequence[Sample]], plan: SamplingPlan
) -> AsyncGenerator[Sequence[Sample], None]:
    """Complete every sample of every group in place; yields each group when its last sample ended.

    All requests go out as one ordered batch: with a deterministic engine the same call gives the same tokens. Closing the
    generator early aborts what still runs.
    """
    waiting = [len(group) for group in groups]
    place: dict[str, tuple[int, Sample]] = {}
    requests: list[GenerateRequest] = []
    for number, group in enumerate(groups):
        for sample in group:
            request = plan.request(sample)
            if request is None:
                sample.status = Status.TRUNCATED
                waiting[number] -= 1
            else:
                place[request.rid] = (number, sample)
                requests.append(request)
    for number, left in enumerate(waiting):
        if left == 0:
            yield groups[number]
    if not requests:
        return
    async with aclosing(client.generate(requests)) as results:
        async for result in results:
            number, sample = place.pop(result.rid)
            complete(sample, result)
            waiting[number] -= 1
            if waiting[number] == 0:
                yield groups[number]


def complete(sample: Sample, result: GenerateResult) -> None:
    """Append what the engine made.

    Raises:
        ValueError: the engine's ids and log-probs differ in number.
    """
    sample.response_ids.extend(result.output_ids)
    if sample.rollout_log_probs is None:
        sample.rollout_log_probs = []
    sample.rollout_log_probs.extend(result.log_probs)
    sample.response += result.text
    sample.weight_versions.append((result.weight_version, len(result.output_ids)))
    sample.status = _STATUS[result.finish_reason]
    sample.check()
