"""Samples through an engine: seeds, limits, statuses."""

from __future__ import annotations

import asyncio

import pytest

from miles_core.rollout.sampling import SamplingPlan, complete, generate, sample_seed
from miles_core.samples import FinishReason, GenerateResult, Sample, SamplingParams, Status


def plan(max_new_tokens: int = 20, max_context: int | None = None, seed: int = 1) -> SamplingPlan:
    return SamplingPlan(SamplingParams(max_new_tokens, temperature=0.7), max_context, seed, "rollout-0")


def groups(*lengths: int) -> list[list[Sample]]:
    return [[Sample(2 * g + i, g, prompt_ids=[40 + g] * length) for i in range(2)] for g, length in enumerate(lengths)]


def run(client, made: list[list[Sample]], how: SamplingPlan) -> list[int]:
    """Completes everything; the group numbers in the order of their ends."""

    async def drain() -> list[int]:
        return [group[0].group_index async for group in generate(client, made, how)]

    return asyncio.run(drain())


def test_a_seed_is_a_function_of_run_and_sample() -> None:
    seeds = {sample_seed(seed, index) for seed in range(40) for index in range(100)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**48 for seed in seeds)
    assert sample_seed(42, 7) == 200_973_859_724_237
    requests = [plan(seed=42).request(Sample(7, prompt_ids=[5])) for _ in range(2)]
    assert requests[0] == requests[1]
    assert requests[0] is not None
    assert requests[0].params.sampling_seed == sample_seed(42, 7)
    assert requests[0].rid == "rollout-0-7"


def test_every_group_ends_once_with_what_the_engine_made(make_client) -> None:
    client = make_client(lambda text, seed: f"{text}{seed % 7}")
    made = groups(1, 2, 3)
    assert run(client, made, plan()) == [2, 1, 0]
    for group in made:
        for sample in group:
            text = f"{client.oracle.tokenizer.decode(sample.prompt_ids)}{sample_seed(1, sample.index) % 7}"
            assert sample.response == text + "<|im_end|>"
            assert (sample.status, sample.response_length) == (Status.COMPLETED, len(text) + 1)
            assert sample.weight_versions == [(3, len(text) + 1)]
            assert sample.rollout_log_probs == [-0.5] * (len(text) + 1)
    assert len(client.oracle.batches) == 1
    assert [r.rid for r in client.oracle.batches[0]] == [f"rollout-0-{i}" for i in range(6)]


def test_the_context_limit_shortens_responses(make_client) -> None:
    client = make_client(lambda text, seed: "long answer")
    made = groups(4)
    run(client, made, plan(max_context=9))
    assert [sample.response for sample in made[0]] == ["long "] * 2
    assert [sample.status for sample in made[0]] == [Status.TRUNCATED] * 2


@pytest.mark.parametrize("length", [9, 12])
def test_a_prompt_that_fills_the_context_is_truncated_without_a_request(make_client, length: int) -> None:
    client = make_client(lambda text, seed: "yes")
    made = groups(length, 1)
    assert run(client, made, plan(max_context=9)) == [0, 1]
    assert [(s.status, s.response_ids) for s in made[0]] == [(Status.TRUNCATED, [])] * 2
    assert [s.status for s in made[1]] == [Status.COMPLETED] * 2
    assert [r.rid for r in client.oracle.batches[0]] == ["rollout-0-2", "rollout-0-3"]


def test_nothing_to_generate_asks_no_engine(make_client) -> None:
    client = make_client(lambda text, seed: "yes")
    assert run(client, groups(9), plan(max_context=9)) == [0]
    assert client.oracle.batches == []


def test_ending_early_ends_the_engines_work(make_client) -> None:
    client = make_client(lambda text, seed: "yes")

    async def first() -> None:
        generator = generate(client, groups(1, 1, 1), plan())
        await anext(generator)
        assert client.closed == 0
        await generator.aclose()
        assert client.closed == 1

    asyncio.run(first())


def test_an_aborted_response_keeps_its_tokens() -> None:
    sample = Sample(0, 0, prompt_ids=[5])
    complete(sample, GenerateResult("r", (6, 7), (-0.1, -0.2), FinishReason.ABORT, 4, "ab"))
    assert (sample.status, sample.tokens, sample.weight_versions) == (Status.ABORTED, [5, 6, 7], [(4, 2)])


def test_what_an_engine_makes_later_is_appended() -> None:
    sample = Sample(0, 0, prompt_ids=[5])
    complete(sample, GenerateResult("r", (6, 7), (-0.1, -0.2), FinishReason.ABORT, 4, "ab"))
    complete(sample, GenerateResult("r", (8,), (-0.3,), FinishReason.STOP, 5, "c"))
    assert (sample.response_ids, sample.response, sample.rollout_log_probs) == ([6, 7, 8], "abc", [-0.1, -0.2, -0.3])
    assert (sample.weight_versions, sample.status) == ([(4, 2), (5, 1)], Status.COMPLETED)


def test_log_probs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="log_probs"):
        complete(Sample(0, 0, prompt_ids=[5]), GenerateResult("r", (6, 7), (-0.1,), FinishReason.STOP, 4, "ab"))
