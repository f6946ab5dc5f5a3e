"""The rollout manager against an engine over HTTP, with the installed plugins."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from miles_core.config import DataOptions
from miles_core.errors import RunError, UsageError
from miles_core.options import Config
from miles_core.rollout.collector import Collector
from miles_core.rollout.manager import ManagerInfo, RolloutManager, RolloutResult
from miles_core.runtime.plan import RunPlan

T = TypeVar("T")


def run(made: tuple[Config, RunPlan], urls: Sequence[str], work: Callable[[RolloutManager, ManagerInfo], Awaitable[T]]) -> T:
    """Start a manager, do the work, close."""

    async def whole() -> T:
        manager = RolloutManager(*made)
        try:
            return await work(manager, await manager.start(urls))
        finally:
            await manager.close()

    return asyncio.run(whole())


def sums(count: int) -> list[dict[str, object]]:
    return [{"input": f"{i}+1", "label": str(i + 1)} for i in range(count)]


def add(text: str, seed: int) -> str:
    """Right for three seeds of four."""
    found = re.search(r"(\d+)\+1", text)
    assert found is not None
    return str(int(found[1]) + (1 if seed % 4 else 2))


def grpo(prompts: int = 4, samples: int = 4) -> list[object]:
    sizes = ["--rollout-batch-size", prompts, "--n-samples-per-prompt", samples]
    return ["--algo", "grpo", "--rm-type", "exact", "--label-key", "label", *sizes]


GRPO = grpo()
SHORT = ["--rollout-max-response-len", 64]


@pytest.fixture
def gsm8k() -> Path:
    folder = os.environ.get("MILES_TEST_DATA")
    if not folder:
        pytest.skip("MILES_TEST_DATA names no folder of data sets")
    return Path(folder) / "gsm8k" / "train.jsonl"


def test_gsm8k_with_the_math_reward(plan, serve, gsm8k: Path, tmp_path: Path) -> None:
    lines = gsm8k.read_text(encoding="utf-8").splitlines()[:40]
    rows = {row["question"]: row["answer"].rpartition("#### ")[2].replace(",", "") for row in map(json.loads, lines)}
    # The character tokenizer knows ASCII alone; a question is found by its first words of it.
    answers = {_ascii(question)[:60]: answer for question, answer in rows.items()}

    def solve(text: str, seed: int) -> str:
        question = text.partition("user\n")[2][:60]
        known = next(answer for start, answer in answers.items() if start[:40] == _ascii(question)[:40])
        return rf"So it is \boxed{{{known if seed % 2 else -1}}}."

    oracle, url = serve(solve)
    made = plan(
        *("--algo", "grpo", "--rm-type", "math", "--prompt-data", f"{gsm8k}@[0:40]", "--input-key", "question"),
        *("--label-key", "answer", "--apply-chat-template", "--rollout-batch-size", 8, "--n-samples-per-prompt", 4, *SHORT),
    )

    async def work(manager: RolloutManager, info: ManagerInfo) -> RolloutResult:
        assert (info.prompts, info.dropped, info.notices) == (40, 0, [])
        result = await manager.generate(0)
        assert manager.progress() == {"done": 32, "total": 32}
        return result

    result = run(made, [url], work)
    assert [row.index for row in result.rows] == list(range(32))
    assert [row.group for row in result.rows] == [i // 4 for i in range(32)]
    seeds = [r.params.sampling_seed for r in oracle.batches[0]]
    assert [row.raw_reward for row in result.rows] == [float(seed % 2) for seed in seeds if seed is not None]
    for group in np.split(np.array([row.reward for row in result.rows]), 8):
        assert abs(group.sum()) < 1e-6
    assert result.metrics["rollout/raw_reward"] == pytest.approx(np.mean([row.raw_reward for row in result.rows]))
    assert result.metrics["rollout/truncated_ratio"] == 0
    assert all(row.version == 3 and row.mask.all() for row in result.rows)
    written = [json.loads(line) for line in (tmp_path / "run" / "samples" / "rollout_0.jsonl").read_text("utf-8").splitlines()]
    assert [each["index"] for each in written] == list(range(32))
    assert written[0]["prompt"].startswith("<|im_start|>user\n")
    assert written[0]["response"].endswith("}.<|im_end|>")
    assert [each["reward"] for each in written] == [row.raw_reward for row in result.rows]
    assert result.examples == [{**each, "weight_versions": [tuple(v) for v in each["weight_versions"]]} for each in written[:2]]


def _ascii(text: str) -> str:
    return "".join(c for c in text if c == "\n" or " " <= c <= "~")


def test_rollouts_with_the_exact_reward_go_on_from_a_state(plan, serve, write) -> None:
    _, url = serve(add)
    made = plan(*GRPO, *SHORT, "--prompt-data", write(*sums(6)), "--rollout-shuffle")
    states: list[str] = []

    async def first(manager: RolloutManager, info: ManagerInfo) -> list[RolloutResult]:
        results = []
        for rollout_id in range(3):
            results.append(await manager.generate(rollout_id))
            states.append(json.dumps(manager.state()))
        return results

    async def second(manager: RolloutManager, info: ManagerInfo) -> RolloutResult:
        manager.load_state(json.loads(states[1]))
        return await manager.generate(2)

    whole = run(made, [url], first)
    resumed = run(made, [url], second)
    assert [row.index for result in whole for row in result.rows] == list(range(48))
    for ours, theirs in zip(resumed.rows, whole[2].rows, strict=True):
        assert (ours.index, ours.group, ours.reward, ours.raw_reward) == (
            theirs.index,
            theirs.group,
            theirs.reward,
            theirs.raw_reward,
        )
        assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert 0 < whole[0].metrics["rollout/raw_reward"] < 1


def test_the_filter_of_equal_rewards_fills_the_rollout(plan, serve, write) -> None:
    _, url = serve(add)
    made = plan(*GRPO, *SHORT, "--prompt-data", write(*sums(30)), "--dynamic-sampling-filter-path", "nonzero_std")
    result = run(made, [url], lambda manager, info: manager.generate(0))
    assert len(result.rows) == 16
    assert result.metrics["rollout/informative_groups"] == 4
    dropped = sum(value for name, value in result.metrics.items() if "dynamic_filter" in name)
    assert dropped > 0
    assert result.metrics["rollout/generated_samples"] == 16 + 4 * dropped


def test_labels_that_cannot_be_graded_end_the_run(plan, serve, write) -> None:
    _, url = serve(add)
    made = plan(*GRPO, *SHORT, "--prompt-data", write(*({"input": f"{i}+1", "label": None} for i in range(4))))
    with pytest.raises(RunError, match="M402") as caught:
        run(made, [url], lambda manager, info: manager.generate(0))
    assert caught.value.owner == "reward exact"


def test_long_prompts_are_noticed(plan, serve, write) -> None:
    oracle, url = serve(add)
    rows = [*sums(4), {"input": "long " * 20 + "7+1", "label": "8"}]
    made = plan(*GRPO, *SHORT, "--prompt-data", write(*rows), "--rollout-max-context-len", 50)

    async def work(manager: RolloutManager, info: ManagerInfo) -> ManagerInfo:
        await manager.generate(0)
        return info

    info = run(made, [url], work)
    assert (info.prompts, info.dropped) == (4, 1)
    assert info.notices[0].startswith("1 of 5 rows of ")
    assert {r.params.max_new_tokens for r in oracle.batches[0]} == {47}


def test_sampling_is_as_the_options_say(plan, serve, write) -> None:
    oracle, url = serve(add)
    options = ["--rollout-temperature", 0.7, "--rollout-top-p", 0.9, "--rollout-top-k", 5, "--rollout-stop", "A", "B"]
    made = plan(*GRPO, *SHORT, *options, "--rollout-stop-token-ids", 9, "--prompt-data", write(*sums(4)))
    run(made, [url], lambda manager, info: manager.generate(0))
    params = oracle.batches[0][0].params
    assert (params.temperature, params.top_p, params.top_k, params.max_new_tokens) == (0.7, 0.9, 5, 64)
    assert (params.stop, params.stop_token_ids, params.skip_special_tokens) == (("A", "B"), (9,), False)


def test_rows_are_read_by_the_keys_of_the_options(plan, serve, write, tmp_path: Path, monkeypatch) -> None:
    """Tools reach the template, media the engine, and further data the samples."""
    template = "{% for t in tools %}{{ t['function']['name'] }};{% endfor %}{% for m in messages %}{% for part in m['content'] %}"
    template += "{{ part['text'] if part['type'] == 'text' else '[' + part['type'] + ']' }}{% endfor %}{% endfor %}"
    tool = {"type": "function", "function": {"name": "lookup", "parameters": {}}}
    row = {"input": "<image>1+1", "label": "2", "about": {"source": "book"}, "functions": [tool], "pictures": ["data:,a"]}
    keys = ["--metadata-key", "about", "--tool-key", "functions", "--apply-chat-template"]
    keys += ["--apply-chat-template-kwargs", json.dumps({"chat_template": template})]
    (tmp_path / "keys_reward.py").write_text(
        "seen = []\nasync def grade(args, sample):\n    seen.append(dict(sample.metadata))\n    return 0.0\n", "utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    oracle, url = serve(lambda text, seed: str(seed))
    sizes = ["--algo", "grpo", "--label-key", "label", "--rollout-batch-size", 1, "--n-samples-per-prompt", 2]
    keys += ["--custom-rm-path", "keys_reward.grade"]
    config, planned = plan(*sizes, *SHORT, *keys, "--prompt-data", write({**row, "input": "1+1"}))
    # The embedded engine takes no media, so that --multimodal-keys of a command line would be refused.
    made = config.replaced(DataOptions, multimodal_keys={"image": "pictures"}), planned
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")

    run(made, [url], lambda manager, info: manager.generate(0))
    request = oracle.batches[0][0]
    assert oracle.tokenizer.decode(list(request.input_ids)) == "lookup;[image]1+1"
    assert request.media == {"image": ("data:,a",)}
    assert sys.modules["keys_reward"].seen == [{"source": "book", "tools": [tool]}] * 2


def test_special_tokens_of_responses_may_be_left_out(plan, serve, write) -> None:
    oracle, url = serve(add)
    made = plan(*GRPO, *SHORT, "--rollout-skip-special-tokens", "--prompt-data", write(*sums(4)))
    run(made, [url], lambda manager, info: manager.generate(0))
    assert oracle.batches[0][0].params.skip_special_tokens


@pytest.mark.parametrize("limit", [40, 8])
def test_the_context_of_an_evaluation_is_limited(plan, serve, write, limit: int) -> None:
    oracle, url = serve(add)
    held_out = write(*sums(1), name="held.jsonl")
    evaluation = ["--eval-interval", 1, "--eval-prompt-data", "held", held_out, "--eval-max-context-len", limit]
    made = plan(*GRPO, *SHORT, *evaluation, "--prompt-data", write(*sums(4)))
    run(made, [url], lambda manager, info: manager.evaluate(0))
    request = oracle.batches[0][0]
    assert len(request.input_ids) + request.params.max_new_tokens == limit


def test_evaluation_is_the_same_every_time(plan, serve, write, tmp_path: Path) -> None:
    oracle, url = serve(add)
    evaluation = ["--eval-interval", 1, "--n-samples-per-eval-prompt", 2, "--eval-temperature", 0, "--eval-min-new-tokens", 1]
    held_out = write(*sums(9), name="held.jsonl")
    made = plan(
        *GRPO, *SHORT, "--prompt-data", write(*sums(4)), *evaluation, "--eval-prompt-data", "sum/s", held_out, "b", held_out
    )

    async def work(manager: RolloutManager, info: ManagerInfo) -> list[dict[str, float]]:
        before = manager.state()
        found = [await manager.evaluate(-1), await manager.evaluate(0)]
        assert manager.progress() == {"done": 36, "total": 36}
        assert manager.state() == before
        return found

    first, second = run(made, [url], work)
    assert first == second
    assert 0 < first["eval/sum/s"] < 1
    assert first["eval/b/response_len/min"] == 2
    one, other, again, _ = oracle.batches
    assert [r.params for r in one] == [r.params for r in again]
    assert {(r.params.temperature, r.params.min_new_tokens) for r in one} == {(0.0, 1)}
    assert {r.params.sampling_seed for r in one}.isdisjoint(r.params.sampling_seed for r in other)
    assert len({r.rid for batch in oracle.batches for r in batch}) == 72
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [
        "eval_b_0.jsonl",
        "eval_b_1.jsonl",
        "eval_sum_s_0.jsonl",
        "eval_sum_s_1.jsonl",
    ]


def test_evaluation_by_a_file(plan, serve, write, tmp_path: Path) -> None:
    oracle, url = serve(add)
    held_out = write(*({"q": row["input"], "a": row["label"]} for row in sums(3)), name="held.jsonl")
    config = tmp_path / "eval.yaml"
    config.write_text(f"datasets: [{{name: s, path: {held_out}, input_key: q, label_key: a, max_response_len: 9}}]", "utf-8")
    made = plan(*GRPO, *SHORT, "--prompt-data", write(*sums(4)), "--eval-interval", 1, "--eval-config", config)
    assert "eval/s" in run(made, [url], lambda manager, info: manager.evaluate(-1))
    assert {r.params.max_new_tokens for r in oracle.batches[0]} == {9}


def test_a_supervised_run_needs_no_engine(plan, write, tmp_path: Path) -> None:
    rows = [*sums(5), {"input": "9+1", "label": ""}]
    made = plan("--algo", "sft", "--label-key", "label", "--rollout-batch-size", 4, "--prompt-data", write(*rows))

    async def work(manager: RolloutManager, info: ManagerInfo) -> list[RolloutResult]:
        assert (info.prompts, info.dropped) == (5, 1)
        return [await manager.generate(0), await manager.generate(1)]

    first, second = run(made, [], work)
    assert [row.index for row in [*first.rows, *second.rows]] == list(range(8))
    for row in first.rows:
        assert (row.rollout_log_probs, row.reward, row.version, row.mask.tolist()) == (None, 0.0, -1, [1.0, 1.0])
        assert math.isnan(row.raw_reward)
        assert len(row.tokens) == 5
    assert first.rows[0].tokens.tolist() == second.rows[1].tokens.tolist()
    written = (tmp_path / "run" / "samples" / "rollout_1.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["response"] for line in written] == ["5", "1", "2", "3"]


def test_a_supervised_run_can_evaluate(plan, serve, write) -> None:
    _, url = serve(add)
    rows = write(*sums(4))
    made = plan(
        *("--algo", "sft", "--label-key", "label", "--rollout-batch-size", 4, "--prompt-data", rows, "--rm-type", "exact"),
        *("--eval-interval", 1, "--eval-prompt-data", "s", rows, *SHORT),
    )
    assert 0 <= run(made, [url], lambda manager, info: manager.evaluate(0))["eval/s"] <= 1


def test_a_state_of_other_data_is_refused(plan, write) -> None:
    made = plan("--algo", "sft", "--label-key", "label", "--rollout-batch-size", 4, "--prompt-data", write(*sums(4)))

    async def work(manager: RolloutManager, info: ManagerInfo) -> None:
        state = manager.state()
        state["source"]["cursor"]["size"] = 5
        with pytest.raises(UsageError, match="M316"):
            manager.load_state(state)

    run(made, [], work)


def test_twenty_thousand_prompts_start_at_once(plan, serve, write) -> None:
    _, url = serve(add)
    made = plan(*GRPO, *SHORT, "--prompt-data", write(*sums(20_000)), "--apply-chat-template", "--rollout-shuffle")

    async def work(manager: RolloutManager, info: ManagerInfo) -> float:
        started = time.perf_counter()
        await RolloutManager(*made).start([url])
        return time.perf_counter() - started

    # Half a second alone; the bound leaves room for a busy machine.
    assert run(made, [url], work) < 5


def test_what_the_manager_adds_to_a_rollout_is_small(plan, serve, write, make_client) -> None:
    _, url = serve(add)
    made = plan(*grpo(prompts=64, samples=8), *SHORT, "--prompt-data", write(*sums(200)), "--apply-chat-template")

    async def work(manager: RolloutManager, info: ManagerInfo) -> float:
        collector = manager._collector
        assert isinstance(collector, Collector)
        client = make_client(add)
        collector.client = client
        inside = 0.0
        answer = client.oracle.results

        def timed(requests):
            nonlocal inside
            started = time.perf_counter()
            results = list(answer(requests))
            inside += time.perf_counter() - started
            return iter(results)

        client.oracle.results = timed
        seconds = []
        for rollout_id in range(6):
            inside = 0.0
            started = time.perf_counter()
            result = await manager.generate(rollout_id)
            seconds.append(time.perf_counter() - started - inside)
            assert len(result.rows) == 512
        return min(seconds[1:])

    took = run(made, [url], work)
    # About 25 ms for 512 samples; the bound leaves room for a busy machine.
    assert took < 0.4


def test_a_reward_of_ones_own(plan, serve, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, url = serve(add)
    (tmp_path / "own_reward.py").write_text(
        "async def grade(args, sample):\n    return {'n': len(sample.response_ids), 'x': 'y'}\n", "utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = [word for word in GRPO if word not in ("--rm-type", "exact")]
    made = plan(*options, *SHORT, "--custom-rm-path", "own_reward.grade", "--reward-key", "n", "--prompt-data", write(*sums(4)))
    result = run(made, [url], lambda manager, info: manager.generate(0))
    assert [row.raw_reward for row in result.rows] == [float(row.response_length) for row in result.rows]
