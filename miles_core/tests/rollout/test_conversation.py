"""Samples made in turns: what is trained on, what limits them, what a rollout's end does to them, and what breaks the contract."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from miles_core.config import RolloutOptions
from miles_core.errors import PluginError, RunError
from miles_core.options import Config
from miles_core.plugins import create
from miles_core.plugins.adhoc import load_adhoc, packaged
from miles_core.rollout.calculator import calculate
from miles_core.rollout.sampling import SamplingPlan, generate
from miles_core.samples import FinishReason, GenerateRequest, GenerateResult, Sample, SamplingParams, Status

CONFIG = Config.of(RolloutOptions(rollout_max_response_len=200))


def solve(text: str, seed: int) -> str:
    """Asks for the sum twice, and then says what it read last."""
    said = text.rpartition("assistant\n")[2]
    read = re.findall(r"<result>(.*?)</result>", said)
    if len(read) < 2:
        return f"Let me see: <calc>{seed % 7}+{len(read)}</calc> and more that nobody reads"
    return f"It is {read[-1]}."


@pytest.fixture
def samples(make_client) -> Callable[[int], list[list[Sample]]]:
    tokenizer = make_client(solve).oracle.tokenizer
    prompt = tokenizer.encode("<|im_start|>user\nadd<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)

    def make(count: int, size: int = 2) -> list[list[Sample]]:
        return [[Sample(index=g * size + i, group_index=g, prompt_ids=list(prompt)) for i in range(size)] for g in range(count)]

    return make


@pytest.fixture
def function(tmp_path: Path) -> Callable[[str], Any]:
    """A generate function from its code, or by its short name."""

    def make(code: str) -> Any:
        path = packaged(code)
        if path == code:
            file = tmp_path / f"made_{abs(hash(code))}.py"
            file.write_text("from miles_core.samples import Sample, Status\n" + code, encoding="utf-8")
            (name,) = re.findall(r"def (\w+)", code)
            path = f"{file}:{name}"
        return create(load_adhoc(path, "generate", "--custom-generate-function-path"), CONFIG)

    return make


def run(client: Any, groups: Sequence[Sequence[Sample]], made: Any, stopping=lambda: False, **params: Any) -> list[int]:
    """Groups in the order in which they ended."""
    tokenizer = client.oracle.tokenizer
    context = params.pop("max_context", None)
    plan = SamplingPlan(
        SamplingParams(**{"max_new_tokens": 200, **params}),
        context,
        5,
        "rollout-0",
        decode=lambda ids: tokenizer.decode(list(ids)),
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        function=made,
    )

    async def whole() -> list[int]:
        return [group[0].group_index async for group in generate(client, groups, plan, stopping)]

    return asyncio.run(whole())


def text_of(client: Any, sample: Sample, keep: int) -> str:
    tokenizer = client.oracle.tokenizer
    pairs = zip(sample.response_ids, sample.train_mask(), strict=True)
    return tokenizer.decode([token for token, mask in pairs if mask == keep])


def test_a_calculator_is_used_and_not_trained_on(make_client, samples, function) -> None:
    client, groups = make_client(solve), samples(2)
    assert sorted(run(client, groups, function("calculator"))) == [0, 1]
    for sample in (sample for group in groups for sample in group):
        results = re.findall(r"<result>\d+</result>", sample.response)
        assert len(results) == sample.metadata["round_number"] == 2
        assert text_of(client, sample, 0) == "".join(results)
        assert text_of(client, sample, 1).endswith("<|im_end|>")
        assert "nobody reads" not in sample.response
        assert client.oracle.tokenizer.decode(sample.response_ids) == sample.response
        # What the environment says has log-prob 0.0; every token has a version.
        assert all((mask == 0) == (value == 0.0) for mask, value in zip(sample.loss_mask, sample.rollout_log_probs, strict=True))
        assert sample.weight_versions == [(3, sample.response_length)]
        assert sample.status is Status.COMPLETED
    # Turn by turn, each request goes on from exactly the tokens before it, in order of the samples.
    assert [len(batch) for batch in client.oracle.batches] == [4, 4, 4]
    for earlier, later in zip(client.oracle.batches, client.oracle.batches[1:], strict=False):
        for before, after in zip(earlier, later, strict=True):
            assert list(after.input_ids[: len(before.input_ids)]) == list(before.input_ids)
    rids = [request.rid for batch in client.oracle.batches for request in batch]
    assert len(set(rids)) == len(rids)


@pytest.mark.parametrize("limit", [*range(1, 120, 7), 200])
@pytest.mark.parametrize("by", ["max_new_tokens", "max_context"])
def test_no_limit_is_exceeded(make_client, samples, function, limit: int, by: str) -> None:
    client, ((sample,),) = make_client(solve), samples(1, 1)
    prompt = len(sample.prompt_ids)
    run(client, [[sample]], function("calculator"), **{by: limit + (prompt if by == "max_context" else 0)})
    sample.check()
    assert sample.response_length <= limit
    assert sample.finished
    assert (sample.status is Status.COMPLETED) == (sample.response.endswith("<|im_end|>"))
    # No answer of the tool is cut: it fits as a whole, or is not there.
    assert sample.response.count("<result>") == sample.response.count("</result>")


class CutOnce:
    """An engine that cuts every request off after ``after`` tokens, the first time."""

    def __init__(self, client: Any, after: int) -> None:
        self.oracle, self.batch_stream, self.urls, self._after, self._cut = client.oracle, True, client.urls, after, set()
        self._client = client

    async def generate(self, requests: Sequence[GenerateRequest]) -> AsyncGenerator[GenerateResult, None]:
        async for result in self._client.generate(requests):
            sample = result.rid.split("-")[2]
            if sample in self._cut:
                yield result
                continue
            self._cut.add(sample)
            n = self._after
            ids, text = result.output_ids[:n], self.oracle.tokenizer.decode(list(result.output_ids[:n]))
            yield GenerateResult(result.rid, ids, result.log_probs[:n], FinishReason.ABORT, 2, text, result.prompt_tokens)


def again(text: str, seed: int) -> str:
    """Goes on with ``<calc>1+1</calc>`` wherever it was cut off, and ends when it has read a result."""
    said = text.rpartition("assistant\n")[2]
    return "done" if "</result>" in said else "<calc>1+1</calc>"[len(said) :]


def test_what_engines_cut_off_goes_on_in_the_same_turn(make_client, samples, function) -> None:
    client, groups = CutOnce(make_client(again), 5), samples(1)
    run(client, groups, function("calculator"))
    for sample in groups[0]:
        assert sample.response == "<calc>1+1</calc><result>2</result>done<|im_end|>"
        assert sample.weight_versions == [(2, 5), (3, sample.response_length - 5)]


@pytest.mark.parametrize("resumes", [True, False])
def test_a_rollout_that_ends_leaves_what_can_go_on(make_client, samples, function, resumes: bool) -> None:
    code = """
async def once(sample, generate):
    sample.metadata["seen"] = True
    await generate()
"""
    made = function("calculator" if resumes else code)
    client, groups = CutOnce(make_client(again), 5), samples(1)
    asked = []

    def stopping() -> bool:
        asked.append(len(asked))
        return len(asked) > 2

    assert run(client, groups, made, stopping) == []
    for sample in groups[0]:
        if resumes:
            assert (sample.response, sample.status) == ("<calc", Status.ABORTED)
        else:
            assert (sample.response_ids, sample.loss_mask, sample.metadata, sample.status) == ([], None, {}, Status.PENDING)
    assert run(client, groups, made) == [0]
    assert groups[0][0].response.startswith("<calc>1+1</calc>")
    assert groups[0][0].weight_versions[0] == ((2, 5) if resumes else (3, groups[0][0].response_length))


BREACHES = {
    "failed with ZeroDivisionError": "async def fn(sample, generate):\n    1 / 0",
    "changed tokens": "async def fn(sample, generate):\n    await generate()\n    sample.prompt_ids.append(1)",
    "contradicts itself": "async def fn(sample, generate):\n    await generate()\n    sample.response_ids.append(1)",
    "observed before": "async def fn(sample, generate):\n    generate.observe('hello')",
    "returned str": "async def fn(sample, generate):\n    return 'text'",
    "returned NoneType": "async def fn(args, sample, sampling_params):\n    pass",
    "rollout_routed_experts has shape (1,)": (
        "async def fn(args, sample, sampling_params):\n    sample.rollout_routed_experts = [1]\n    return sample"
    ),
    "not the prompt's": "async def fn(args, sample, sampling_params):\n    sample.tokens = [1]\n    return sample",
}


@pytest.mark.parametrize("said", BREACHES)
def test_breaches_end_the_run_with_the_functions_name(make_client, samples, function, said: str) -> None:
    with pytest.raises(RunError, match="M326") as caught:
        run(make_client(solve), samples(2), function(BREACHES[said]))
    assert said in str(caught.value)


def test_a_function_of_another_form_is_refused(function) -> None:
    with pytest.raises(PluginError, match="M111"):
        function("async def fn(sample):\n    pass")


def test_the_form_of_scripts_for_miles(make_client, samples, function) -> None:
    made = function(
        """
async def fn(args, sample, sampling_params, evaluation=False):
    assert args.sglang_router_port == 30000 and args.rollout_max_response_len == 200
    sample.tokens += [7, 8, 9]
    sample.response, sample.response_length = "abc", 3
    sample.loss_mask, sample.rollout_log_probs = [1, 0, 1], [-0.5, 0.0, -0.25]
    sample.weight_versions += ["4", "5"]
    sample.rollout_routed_experts = [[[i % 4, 1]] for i in range(len(sample.tokens) - 1)]
    sample.metadata["left"] = sampling_params["max_new_tokens"]
    sample.status = sample.Status.COMPLETED
    return sample
"""
    )
    groups = samples(1)
    run(make_client(solve), groups, made)
    for sample in groups[0]:
        assert (sample.response_ids, sample.loss_mask, sample.weight_versions) == ([7, 8, 9], [1, 0, 1], [(4, 3)])
        assert (sample.status, sample.metadata) == (Status.COMPLETED, {"left": 200})
        assert sample.routed_experts.shape == (len(sample.tokens) - 1, 1, 2)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2*(3+4)", "14"),
        ("7/2", "3.5"),
        ("-8//3", "-3"),
        ("1/0", "error: division by zero"),
        ("2**9", "error: no expression"),
        ("__import__('os')", "error: no expression"),
        ("True+1", "error: no expression"),
        ("(" * 150, "error: no expression"),
        ("1+" * 150 + "1", "error: too long"),
        ("", "error: no expression"),
    ],
)
def test_the_calculator(expression: str, value: str) -> None:
    assert calculate(expression) == value
