"""Routes from the engine's answers to rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from miles_core.errors import RunError
from miles_core.rollout.conversion import to_rows
from miles_core.rollout.routing import keep_routes
from miles_core.rollout.sampling import SamplingPlan, complete
from miles_core.runtime.experts import Experts, read_experts
from miles_core.samples import FinishReason, GenerateResult, Sample, SamplingParams

EXPERTS = Experts(layers=2, experts=8, top_k=3)


def answer(tokens: int, made: int, reason=FinishReason.STOP, seed=0) -> GenerateResult:
    """An answer that made ``made`` tokens of ``tokens`` in all."""
    routes = np.random.default_rng(seed).integers(0, 8, (tokens - 1, 2, 3)).astype("<i4")
    return GenerateResult("r", (5,) * made, (-0.5,) * made, reason, 1, "", routed_experts=routes.tobytes())


def completed(sample: Sample, result: GenerateResult) -> Sample:
    complete(sample, result)
    keep_routes(sample, result, EXPERTS)
    return sample


def test_only_a_run_that_replays_asks_for_routes() -> None:
    plan = SamplingPlan(SamplingParams(8), None, 1, "rollout-0")
    assert not plan.request(Sample(0, prompt_ids=[1])).return_routed_experts
    assert dataclasses.replace(plan, experts=EXPERTS).request(Sample(0, prompt_ids=[1])).return_routed_experts


def test_a_row_has_a_route_for_every_token_and_the_last_is_open() -> None:
    result = answer(7, 4)
    sample = completed(Sample(0, prompt_ids=[1, 2, 3], reward=1.0), result)
    (row,) = to_rows([sample], None)
    assert row.routes.shape == (7, 2, 3)
    assert row.routes.dtype == np.int16
    assert np.array_equal(row.routes[:-1].ravel(), np.frombuffer(result.routed_experts, "<i4"))
    assert (row.routes[-1] == -1).all()


def test_a_response_that_goes_on_has_the_routes_of_the_whole() -> None:
    sample = completed(Sample(0, prompt_ids=[1, 2, 3]), answer(5, 2, FinishReason.ABORT))
    nothing = GenerateResult("r", (), (), FinishReason.ABORT, 2, "")
    before = sample.routed_experts
    assert completed(sample, nothing).routed_experts is before
    whole = answer(9, 4, seed=1)
    completed(sample, whole)
    assert sample.response_length == 6
    assert np.array_equal(sample.routed_experts.ravel(), np.frombuffer(whole.routed_experts, "<i4"))


def test_missing_and_odd_routes_name_the_sample() -> None:
    result = answer(7, 4)
    with pytest.raises(RunError, match=r"M433.*sample 12 has no routed experts.*the engine sent none"):
        completed(Sample(12, prompt_ids=[1, 2, 3]), dataclasses.replace(result, routed_experts=None))
    large = np.full((6, 2, 3), 8, "<i4").tobytes()
    for routes in (result.routed_experts[:-4], result.routed_experts[:-1], b"", large):
        with pytest.raises(RunError, match=r"M434.*sample 12 has routes of a wrong shape"):
            completed(Sample(12, prompt_ids=[1, 2, 3]), dataclasses.replace(result, routed_experts=routes))


def test_what_a_config_says_about_experts() -> None:
    layers = {"num_hidden_layers": 2}
    assert read_experts({**layers, "num_experts": 8, "num_experts_per_tok": 3}) == EXPERTS
    assert read_experts({**layers, "num_local_experts": 8, "num_experts_per_tok": 3}) == EXPERTS
    assert read_experts({"text_config": {**layers, "num_experts": 8, "num_experts_per_tok": 3}}) == EXPERTS
    assert read_experts(layers) is None
    assert read_experts({**layers, "num_experts": 0, "num_experts_per_tok": 3}) is None
