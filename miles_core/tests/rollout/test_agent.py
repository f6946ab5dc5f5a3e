"""Agents that make samples through the chat endpoint: exact tokens, the run's own sampling, its limits, and its end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from miles_core.config import DataOptions, RolloutOptions
from miles_core.errors import RunError, UsageError
from miles_core.options import Config
from miles_core.plugins import create
from miles_core.plugins.adhoc import load_adhoc
from miles_core.rollout.sampling import SamplingPlan, generate, sample_seed
from miles_core.samples import FinishReason, GenerateResult, Sample, SamplingParams, Status

HEAD = """
import asyncio, json
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from miles_core.samples import Sample, Status

def ask(base_url, messages, **further):
    body = json.dumps({"messages": messages, **further}).encode()
    with urlopen(Request(base_url + "/chat/completions", body), timeout=20) as answer:
        return json.load(answer)["choices"][0]
"""
TWICE = """
def agent(sample, base_url):
    messages = [{"role": "user", "content": sample.prompt}]
    messages.append(ask(base_url, messages)["message"])
    messages.append({"role": "user", "content": "once more"})
    sample.metadata["said"] = ask(base_url, messages)["message"]["content"]
"""
AWAITED = """
async def agent(sample, base_url, evaluation=False):
    import aiohttp
    messages = [{"role": "user", "content": sample.prompt}]
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.post(base_url + "/chat/completions", json={"messages": messages}) as answer:
                messages.append((await answer.json())["choices"][0]["message"])
            messages.append({"role": "user", "content": "once more"})
    sample.metadata["said"] = messages[-2]["content"] if not evaluation else "evaluated"
"""
FLAG = "--custom-generate-function-path"


def said(text: str, seed: int) -> str:
    """What the model answers: how often it has been asked, and something of its seed."""
    return f"answer {text.count('assistant')} {seed % 5}"


@pytest.fixture
def agent(tmp_path: Path, checkpoint: Path) -> Callable[[str], Any]:
    """A generate function from the code of an agent."""

    def make(code: str, model: Path = checkpoint) -> Any:
        file = tmp_path / f"made_{abs(hash(code))}.py"
        file.write_text(HEAD + code, encoding="utf-8")
        config = Config.of(RolloutOptions(hf_checkpoint=str(model), rollout_max_response_len=200), DataOptions())
        return create(load_adhoc(f"{file}:agent", "generate", FLAG), config)

    return make


def samples(client: Any, count: int, size: int = 2) -> list[list[Sample]]:
    ids = client.oracle.tokenizer.encode("add", add_special_tokens=False)
    return [
        [Sample(index=g * size + i, group_index=g, prompt=f"add {g}", prompt_ids=list(ids)) for i in range(size)]
        for g in range(count)
    ]


def run(client: Any, groups: Sequence[Sequence[Sample]], made: Any, stopping=lambda: False, **params: Any) -> list[int]:
    """Groups in the order in which they ended."""
    tokenizer = client.oracle.tokenizer
    evaluation = params.pop("evaluation", False)
    plan = SamplingPlan(
        SamplingParams(**{"max_new_tokens": 200, "temperature": 0.7, **params}),
        None,
        5,
        "rollout-0",
        decode=lambda ids: tokenizer.decode(list(ids)),
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        function=made,
        evaluation=evaluation,
    )

    async def whole() -> list[int]:
        return [group[0].group_index async for group in generate(client, groups, plan, stopping)]

    return asyncio.run(whole())


@pytest.mark.parametrize("code", [TWICE, AWAITED])
def test_the_session_becomes_the_sample(make_client, agent, code: str) -> None:
    client = make_client(said)
    groups = samples(client, 3)
    assert sorted(run(client, groups, agent(code))) == [0, 1, 2]
    tokenizer = client.oracle.tokenizer
    first, second = client.oracle.batches
    # All agents' requests of a turn are one batch, in order of the samples, and the second goes on from the first's tokens.
    assert len(first) == len(second) == 6
    for request, later, sample in zip(first, second, [sample for group in groups for sample in group], strict=True):
        sample.check()
        assert sample.tokens[: len(later.input_ids)] == list(later.input_ids)
        assert list(later.input_ids[: len(request.input_ids)]) == list(request.input_ids) == sample.prompt_ids
        assert tokenizer.decode(sample.prompt_ids).startswith(f"<|im_start|>user\nadd {sample.group_index}<|im_end|>")
        assert request.params.temperature == later.params.temperature == 0.7
        # The first draw is the one that a run without an agent makes; the second is another.
        assert request.params.sampling_seed == sample_seed(5, sample.index) != later.params.sampling_seed
        pairs = list(zip(sample.response_ids, sample.loss_mask, sample.rollout_log_probs, strict=True))
        own = tokenizer.decode([token for token, mask, _ in pairs if mask])
        assert re.fullmatch(r"answer 1 \d<\|im_end\|>answer 2 \d<\|im_end\|>", own)
        assert all((mask == 0) == (value == 0.0) for _, mask, value in pairs)
        assert sample.weight_versions == [(3, sample.response_length)]
        assert sample.response == tokenizer.decode(sample.response_ids)
        assert sample.metadata["said"] in own
        assert sample.metadata["session"] == {"turns": 2, "branches": 1, "rerendered": 0}
        assert sample.metadata["round_number"] == 2
        assert sample.status is Status.COMPLETED
    again = make_client(said)
    repeated = samples(again, 3)
    run(again, repeated, agent(code))
    assert [[sample.tokens for sample in group] for group in repeated] == [[sample.tokens for sample in group] for group in groups]


def test_an_agent_may_know_that_it_is_evaluated(make_client, agent) -> None:
    client = make_client(said)
    groups = samples(client, 1, 1)
    run(client, groups, agent(AWAITED), evaluation=True)
    assert groups[0][0].metadata["said"] == "evaluated"


def test_an_agent_that_goes_on_beyond_its_limit_has_a_truncated_sample(make_client, agent) -> None:
    code = """
async def agent(sample, base_url):
    messages = [{"role": "user", "content": "hi"}]
    while True:
        messages.append((await asyncio.to_thread(ask, base_url, messages))["message"])
        messages.append({"role": "user", "content": "more"})
"""
    client = make_client(said)
    groups = samples(client, 1)
    run(client, groups, agent(code), max_new_tokens=100)
    for sample in groups[0]:
        sample.check()
        assert sample.status is Status.TRUNCATED
        assert 50 < sample.response_length <= 100
        assert sample.loss_mask[-1] == 1


def test_agents_that_wait_for_each_other_do_not_wait_for_ever(make_client, agent, monkeypatch) -> None:
    monkeypatch.setattr("miles_core.rollout.agent.PATIENCE", 0.05)
    code = """
turns = asyncio.Semaphore(1)
async def agent(sample, base_url):
    async with turns:
        await asyncio.to_thread(ask, base_url, [{"role": "user", "content": "hi"}])
"""
    client = make_client(said)
    groups = samples(client, 2)
    assert sorted(run(client, groups, agent(code))) == [0, 1]
    assert [len(batch) for batch in client.oracle.batches] == [1, 1, 1, 1]


def test_more_agents_than_threads(make_client, agent) -> None:
    """They share the loop's threads: those that have one wait for the endpoint, which must not wait for a thread."""
    code = 'async def agent(sample, base_url):\n    await asyncio.to_thread(ask, base_url, [{"role": "user", "content": "hi"}])'
    client = make_client(said)
    groups = samples(client, 12, 4)
    assert sorted(run(client, groups, agent(code))) == list(range(12))
    assert sum(len(batch) for batch in client.oracle.batches) == 48


def test_the_end_of_a_rollout_ends_agents(make_client, agent) -> None:
    client = make_client(said)
    groups = samples(client, 1)
    prompt = list(groups[0][0].prompt_ids)
    code = TWICE.replace("once more", "and again")
    asked = client.oracle.batches
    assert run(client, groups, agent(code), stopping=lambda: len(asked) > 0) == []
    for sample in groups[0]:
        # Back to the prompt alone, as it was in the data.
        assert (sample.prompt_ids, sample.response_ids, sample.loss_mask) == (prompt, [], None)
        assert sample.metadata == {}
        assert not sample.finished


def test_a_broken_environment(make_client, agent) -> None:
    code = "async def agent(sample, base_url):\n    sample.status = Status.FAILED"
    client = make_client(said)
    groups = samples(client, 1)
    assert run(client, groups, agent(code)) == [0]
    assert [sample.status for sample in groups[0]] == [Status.FAILED] * 2


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("async def agent(sample, base_url):\n    1 / 0", "M326 .*failed with ZeroDivisionError"),
        ("def agent(sample, base_url):\n    raise SystemExit(3)", "M326 .*failed with SystemExit"),
        ("async def agent(sample, base_url):\n    return 'text'", "M326 .*returned str"),
        ("async def agent(sample, base_url):\n    pass", "M350 .*never asked the model for sample"),
        ("async def agent(sample, base_url):\n    raise asyncio.CancelledError", "M326 .*was cancelled"),
    ],
)
def test_an_agent_that_breaks_its_contract_ends_the_run(make_client, agent, code: str, line: str) -> None:
    client = make_client(said)
    with pytest.raises(RunError) as raised:
        run(client, samples(client, 1), agent(code))
    assert re.match(line, raised.value.line())


def test_an_engine_that_fails_ends_the_run(make_client, agent) -> None:
    client = make_client(said)

    async def broken(requests):
        raise RunError("M441", "no connection to engine", owner="miles-core", fix="see its log")
        yield

    client.generate = broken
    with pytest.raises(RunError, match="M441"):
        run(client, samples(client, 1), agent(TWICE))


def test_engines_that_cut_off_again_and_again_are_to_blame(make_client, agent, monkeypatch) -> None:
    monkeypatch.setattr("miles_core.router.chat.LONGEST_PAUSE", 0.0)
    client = make_client(said)

    async def cutting(requests):
        for request in requests:
            yield GenerateResult(request.rid, (), (), FinishReason.ABORT, 3, "", 4)

    client.generate = cutting
    with pytest.raises(RunError, match=r"M405 .*20 times in a row"):
        run(client, samples(client, 1), agent(TWICE))


def test_a_session_is_of_its_sample_alone(make_client, agent) -> None:
    code = """
def agent(sample, base_url):
    ask(base_url, [{"role": "user", "content": "hi"}])
    root = base_url.split("/sessions/")[0]
    for url in (root + "/v1/chat/completions", root + "/sessions/other/v1/chat/completions"):
        try:
            ask(url.removesuffix("/chat/completions"), [{"role": "user", "content": "hi"}])
        except HTTPError as error:
            sample.metadata.setdefault("codes", []).append(error.code)
"""
    client = make_client(said)
    groups = samples(client, 1)
    run(client, groups, agent(code))
    assert [sample.metadata["codes"] for sample in groups[0]] == [[404, 404]] * 2


def test_routes_of_a_session_are_its_samples(make_client, agent, monkeypatch) -> None:
    from dataclasses import replace

    from miles_core.rollout import sampling
    from miles_core.runtime.experts import Experts

    client = make_client(said)
    given = client.generate

    async def routed(requests):
        async for result in given(requests):
            (request,) = [request for request in requests if request.rid == result.rid]
            assert request.return_routed_experts
            tokens = len(request.input_ids) + len(result.output_ids) - 1
            routes = b"".join((i % 4).to_bytes(4, "little") for i in range(tokens * 2))
            yield replace(result, routed_experts=routes)

    client.generate = routed
    experts = Experts(layers=2, experts=4, top_k=1)
    request = sampling.SamplingPlan.__init__

    def with_experts(self, *arguments, **named):
        request(self, *arguments, **{**named, "experts": experts})

    monkeypatch.setattr(sampling.SamplingPlan, "__init__", with_experts)
    groups = samples(client, 1)
    run(client, groups, agent(TWICE))
    for sample in groups[0]:
        assert sample.routed_experts.shape == (len(sample.tokens) - 1, 2, 1)
        assert sample.routed_experts.reshape(-1).tolist() == [i % 4 for i in range((len(sample.tokens) - 1) * 2)]


def test_a_model_without_a_template(agent, tmp_path: Path, checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="M351"):
        agent(TWICE, tmp_path / "bare")


def test_forms_are_told_apart_by_their_names(agent) -> None:
    assert agent("async def agent(sample, base_url): ...")._agents is not None
    assert agent("async def agent(sample, generate): ...")._agents is None
    assert agent("async def agent(s, g): ...")._agents is None


def test_cut_off_replies_go_on(make_client, agent) -> None:
    client, cut = make_client(lambda text, seed: "answer 1"[len(text.rpartition("assistant\n")[2]) :]), set()
    given = client.generate

    async def cutting(requests):
        async for result in given(requests):
            sample = result.rid.split("-")[2]
            if sample not in cut:
                cut.add(sample)
                result = GenerateResult(result.rid, result.output_ids[:3], result.log_probs[:3], FinishReason.ABORT, 2, "ans", 4)
            yield result

    client.generate = cutting
    groups = samples(client, 1)
    run(
        client,
        groups,
        agent('async def agent(sample, base_url):\n    await asyncio.to_thread(ask, base_url, [{"role": "user", "content": "x"}])'),
    )
    for sample in groups[0]:
        assert sample.response == "answer 1<|im_end|>"
        assert sample.weight_versions == [(2, 3), (3, sample.response_length - 3)]
