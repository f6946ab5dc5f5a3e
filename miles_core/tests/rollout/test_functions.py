"""Functions that options name: the examples of docs/sampling.md in a real rollout, and what breaks their contracts."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from miles_core.errors import RunError, UsageErrors
from miles_core.plugins import create
from miles_core.rollout.hooks import Hook
from miles_core.rollout.manager import RolloutManager, RolloutResult
from miles_core.samples import Sample, Scored, Status
from miles_core.training.rows import TrainRow

PAGE = Path(__file__).parents[3] / "docs" / "sampling.md"
FLAGS = (
    "--buffer-filter-path",
    "--rollout-sample-filter-path",
    "--rollout-all-samples-process-path",
    "--custom-reward-post-process-path",
    "--custom-convert-samples-to-train-data-path",
    "--rollout-data-postprocess-path",
)
Run = Callable[..., list[RolloutResult]]
GRADE = """
import asyncio
import os

calls = 0


async def grade(sample):
    global calls
    calls += 1
    while calls < int(os.environ.get("LEAST", "0")):
        await asyncio.sleep(0)
    return len(sample.response_ids) / 8
"""


def example(flag: str) -> str:
    found = re.search(rf"### {flag}\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def function(tmp_path: Path) -> Callable[[str], str]:
    """Writes a module with one function; its path as an option takes it."""

    def write_module(code: str) -> str:
        name = re.findall(r"^(?:async )?def (\w+)", code, re.MULTILINE)[-1]
        path = tmp_path / f"{name}.py"
        path.write_text(code, encoding="utf-8")
        return f"{path}:{name}"

    return write_module


@pytest.fixture
def arguments(write, function) -> list[object]:
    """Four prompts whose responses are graded by their length, once as many samples wait for it as ``LEAST`` says."""
    grade = function(GRADE)
    return [
        *("--algo", "grpo", "--custom-rm-path", grade, "--rollout-batch-size", 4, "--n-samples-per-prompt", 2),
        *("--rollout-max-response-len", 6, "--prompt-data", write(*({"input": f"q{i}"} for i in range(12)))),
    ]


@pytest.fixture
def rollouts(plan, serve, arguments) -> Run:
    """Rollouts of a manager with further arguments: responses of 2 to 6 tokens, some of 6 cut off."""

    def run(*more: object, count: int = 1) -> list[RolloutResult]:
        _, url = serve(lambda text, seed: "abcdefg"[: 1 + seed % 6])

        async def whole() -> list[RolloutResult]:
            manager = RolloutManager(*plan(*arguments, *more))
            try:
                await manager.start([url])
                return [await manager.generate(rollout_id) for rollout_id in range(count)]
            finally:
                await manager.close()

        return asyncio.run(whole())

    return run


def test_every_function_has_an_example() -> None:
    assert tuple(re.findall(r"^### (--\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) == FLAGS


def test_rollout_sample_filter(rollouts: Run, function) -> None:
    (result,) = rollouts("--rollout-sample-filter-path", function(example("--rollout-sample-filter-path")))
    truncated = [row for row in result.rows if row.truncated]
    assert truncated
    assert not any(row.mask.any() for row in truncated)
    assert all(row.mask.all() for row in result.rows if not row.truncated)
    assert result.metrics["rollout/removed_samples"] == len(truncated)
    (plain,) = rollouts()
    # Removed samples still count in their groups' statistics.
    assert [row.reward for row in result.rows] == [row.reward for row in plain.rows]


def test_rollout_all_samples_process(rollouts: Run, function) -> None:
    # Groups with an even first sample number are dropped, and seen all the same.
    keep = function("def keep(samples):\n    return samples[0].group_index % 2 == 1\n")
    path = function(example("--rollout-all-samples-process-path"))
    options = ["--dynamic-sampling-filter-path", keep, "--rollout-all-samples-process-path", path]
    (result,) = rollouts(*options)
    module = next(m for m in sys.modules.values() if getattr(m, "__file__", None) == path.rpartition(":")[0])
    assert len(module.seen) == result.metrics["rollout/generated_samples"] > len(result.rows)
    assert sorted({row.group for row in result.rows}) == [1, 3, 5, 7]


def test_all_samples_process_may_ask_for_more(rollouts: Run, function) -> None:
    code = "def more(args, groups, get_samples):\n    groups.clear()\n    assert len(get_samples(2)) == 2\n"
    first, second = rollouts("--rollout-all-samples-process-path", function(code), count=2)
    assert [sorted({row.group for row in result.rows}) for result in (first, second)] == [[0, 1, 2, 3], [6, 7, 8, 9]]


def test_custom_reward_post_process(rollouts: Run, function) -> None:
    (result,) = rollouts("--custom-reward-post-process-path", function(example("--custom-reward-post-process-path")))
    raw = np.array([row.raw_reward for row in result.rows])
    assert np.ptp(raw) > 0
    assert np.allclose([row.reward for row in result.rows], raw - raw.mean())


def test_custom_convert_samples_to_train_data(rollouts: Run, function) -> None:
    flag = "--custom-convert-samples-to-train-data-path"
    (result,) = rollouts(flag, function(example(flag)))
    (plain,) = rollouts()
    for row, other in zip(result.rows, plain.rows, strict=True):
        assert (row.index, row.group, row.response_length, row.truncated, row.version) == (
            other.index,
            other.group,
            other.response_length,
            other.truncated,
            other.version,
        )
        assert row.reward == row.raw_reward == other.raw_reward
        for name in ("tokens", "mask", "rollout_log_probs"):
            mine, its = getattr(row, name), getattr(other, name)
            assert mine.dtype == its.dtype
            assert mine.tolist() == its.tolist()


@pytest.fixture
def surplus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is graded before eight groups are generated."""
    monkeypatch.setenv("LEAST", "16")


@pytest.mark.usefixtures("surplus")
def test_buffer_filter(rollouts: Run, function) -> None:
    flag = "--buffer-filter-path"
    first, second = rollouts(flag, function(example(flag)), "--over-sampling-batch-size", 8, count=2)
    assert second.metrics["rollout/resumed_groups"] == first.metrics["rollout/surplus_groups"] == 4
    assert len({row.index for result in (first, second) for row in result.rows}) == 16


@pytest.mark.usefixtures("surplus")
def test_the_default_buffer_filter_has_a_name(rollouts: Run) -> None:
    first, second = rollouts("--buffer-filter-path", "pop_first", "--over-sampling-batch-size", 8, count=2)
    assert len({row.index for result in (first, second) for row in result.rows}) == 16


def test_rollout_data_postprocess(plan, arguments, function) -> None:
    config, made = plan(*arguments, "--rollout-data-postprocess-path", function(example("--rollout-data-postprocess-path")))
    data = {"advantages": [np.ones(2, np.float32)]}
    create(made.plugins.functions["data_postprocess"], config)(0, data)
    assert data["advantages"][0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_wrong_signature_is_told_before_the_run(flag: str, plan, arguments, function) -> None:
    for code in ("def wrong(a, b, c, d, e):\n    pass\n", "async def wrong(samples):\n    pass\n"):
        with pytest.raises(UsageErrors) as caught:
            plan(*arguments, flag, function(code))
        (error,) = [error for error in caught.value.errors if error.code == "M111"]
        assert error.owner == flag


@pytest.mark.parametrize(
    ("flag", "code", "words"),
    [
        ("--rollout-sample-filter-path", "def f(groups):\n    groups.pop()\n", "changed the lists"),
        ("--rollout-sample-filter-path", "def f(args, groups):\n    return args.no_such_thing\n", "no_such_thing"),
        ("--rollout-all-samples-process-path", "def f(groups):\n    raise ValueError('oh')\n", "ValueError: oh"),
        ("--custom-reward-post-process-path", "def f(samples):\n    return [1.0]\n", "not two lists"),
        ("--custom-reward-post-process-path", "def f(samples):\n    return [1.0], [1.0]\n", "1 raw_rewards for 8 samples"),
        ("--custom-reward-post-process-path", "def f(samples):\n    return samples, samples\n", "no numbers"),
        (
            "--custom-reward-post-process-path",
            "def f(samples):\n    return [1] * 8, [float('nan')] * 8\n",
            "not finite",
        ),
        ("--custom-convert-samples-to-train-data-path", "def f(samples):\n    return samples\n", "returned list"),
        ("--custom-convert-samples-to-train-data-path", "def f(samples):\n    return []\n", "0 rows of 8 samples"),
        ("--custom-convert-samples-to-train-data-path", "def f(samples):\n    return {'tokens': []}\n", "without response_lengths"),
    ],
)
def test_a_broken_contract_ends_the_run(flag: str, code: str, words: str, rollouts: Run, function) -> None:
    with pytest.raises(RunError, match="M407") as caught:
        rollouts(flag, function(code))
    assert caught.value.owner.startswith(flag)
    assert words in caught.value.line()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data['loss_masks'][3] = [1]", "row 3 has mask of shape"),
        ("data['rewards'][1] = float('inf')", "a reward of row 1 that is not finite"),
        ("data['rollout_log_probs'][0][0] = float('nan')", "rollout_log_probs of row 0"),
        ("data['response_lengths'][0] = 0", "a response of 0"),
        ("data['sample_indices'][0] = 99", "sample index 99"),
        ("data['rewards'].pop()", "7 rewards and 8 tokens"),
        ("data['colour'] = data['rewards']", "colour, which nothing would use"),
        ("data['tokens'][2] = ['x']", "entry 2 that is no numbers"),
    ],
)
def test_a_converters_dict_is_checked(change: str, words: str, rollouts: Run, function) -> None:
    code = example("--custom-convert-samples-to-train-data-path")
    broken = code + f"\n\ndef broken(samples):\n    data = plain(None, samples)\n    {change}\n    return data\n"
    with pytest.raises(RunError, match="M407") as caught:
        rollouts("--custom-convert-samples-to-train-data-path", function(broken))
    assert words in caught.value.line()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(buffer, num_samples):\n    return buffer[:num_samples]\n", "left a group in the buffer"),
        ("def f(buffer, num_samples):\n    buffer.clear()\n    return []\n", "lost"),
        ("def f(buffer, num_samples):\n    return [[]]\n", "made a group"),
        ("def f(buffer, num_samples):\n    return None\n", "NoneType"),
    ],
)
@pytest.mark.usefixtures("surplus")
def test_a_broken_buffer_filter_ends_the_run(code: str, words: str, rollouts: Run, function) -> None:
    with pytest.raises(RunError, match="M406") as caught:
        rollouts("--buffer-filter-path", function(code), "--over-sampling-batch-size", 8, count=2)
    assert words in caught.value.line()


def test_a_converter_may_return_rows(rollouts: Run, function) -> None:
    code = (
        "from miles_core.rollout.conversion import to_rows\n\n\n"
        "def rows(samples):\n    return [row for row in to_rows(samples, None)]\n"
    )
    (result,) = rollouts("--custom-convert-samples-to-train-data-path", function(code))
    assert all(isinstance(row, TrainRow) and row.reward == 0 for row in result.rows)


def test_names_decide_between_signatures_of_defaults(plan, arguments, function) -> None:
    code = "def pick(args, rollout_id=None, buffer=None, num_samples=0):\n    return [buffer.pop() for _ in range(num_samples)]\n"
    config, made = plan(*arguments, "--buffer-filter-path", function(code), "--over-sampling-batch-size", 8)
    groups = [[Sample(index=i)] for i in range(3)]
    assert [g[0].index for g in create(made.plugins.functions["buffer_filter"], config)(7, groups, 2)] == [2, 1]


def test_remove_sample_is_removed() -> None:
    sample = Sample(response_ids=[1], status=Status.COMPLETED, score=Scored(1.0), reward=1.0)
    sample.remove_sample = True
    assert (sample.removed, sample.remove_sample, sample.train_mask()) == (True, True, [0])


def test_hooks_are_told_apart_by_their_flags() -> None:
    from miles_core.rollout import hooks

    found = {kind.flag for _, kind in inspect.getmembers(hooks, inspect.isclass) if issubclass(kind, Hook) and kind is not Hook}
    assert found == set(FLAGS)
