"""Functions that make a whole rollout, the example of docs/multi-turn.md among them, and what they log."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from miles_core.errors import RunError
from miles_core.rollout.manager import RolloutManager, RolloutResult

PAGE = Path(__file__).parents[3] / "docs" / "multi-turn.md"
GRPO = ("--algo", "grpo", "--rm-type", "exact", "--label-key", "label", "--rollout-batch-size", 2, "--n-samples-per-prompt", 2)
LEGACY = """
def fn(args, rollout_id, data_source, evaluation=False):
    from miles_core.samples import Scored, Status
    (group,) = data_source.get_samples(1)
    for sample in group:
        sample.response_ids, sample.rollout_log_probs, sample.weight_versions = [3, 4], [-1.0, -1.0], [(1, 2)]
        sample.reward, sample.status = float(sample.index), Status.COMPLETED

    class Output:
        samples = [group]
        metrics = {"own/best": 1}

    return Output
"""


@pytest.fixture
def rollouts(plan, serve, write, tmp_path: Path) -> Callable[..., list[RolloutResult]]:
    def run(code: str, *arguments: object, count: int = 2) -> list[RolloutResult]:
        own = tmp_path / "own.py"
        own.write_text(code, encoding="utf-8")
        (name,) = re.findall(r"^(?:async )?def (\w+)", code, re.MULTILINE)[:1]
        _, url = serve(lambda text, seed: re.search(r"\d+", text)[0])  # type: ignore[index]
        rows = [{"input": str(i), "label": str(i if i % 3 else 77)} for i in range(9)]
        words = ["--prompt-data", write(*rows), "--rollout-max-response-len", 8, "--rollout-function-path", f"{own}:{name}"]
        made = plan(*GRPO, *words, *arguments)

        async def whole() -> list[RolloutResult]:
            manager = RolloutManager(*made)
            try:
                await manager.start([url])
                return [await manager.generate(rollout_id) for rollout_id in range(count)]
            finally:
                await manager.close()

        return asyncio.run(whole())

    return run


def test_the_example_takes_the_better_half(rollouts) -> None:
    found = re.search(r"## A rollout function\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    first, second = rollouts(found[1])
    # Labels 0 and 3 are wrong. Of the four prompts 1 and 2 are taken, 3 is given back, and comes again under its number.
    assert [row.group for row in first.rows] == [1, 1, 2, 2]
    assert first.metrics["rollout/raw_reward"] == 1
    assert [row.group for row in second.rows] == [4, 4, 5, 5]
    assert len({row.index for row in [*first.rows, *second.rows]}) == 8


def test_the_form_of_scripts_for_miles(rollouts) -> None:
    first, second = rollouts(LEGACY)
    assert [row.raw_reward for row in [*first.rows, *second.rows]] == [0, 1, 2, 3]
    assert first.metrics["own/best"] == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("async def fn(rollout_id, source, generate):\n    return []", "no group"),
        ("async def fn(rollout_id, source, generate):\n    return 3", "returned int"),
        ("async def fn(rollout_id, source, generate):\n    return source.get_samples(1)", "unfinished"),
        (
            "async def fn(rollout_id, source, generate):\n    g = source.get_samples(1)\n    await generate(g)\n    return g * 2",
            "twice",
        ),
        ("async def fn(rollout_id, source, generate):\n    return [[3]]", "no list of samples"),
        ("def fn(args, rollout_id, data_source):\n    1 / 0", "failed with ZeroDivisionError"),
        (LEGACY.replace("sample.reward, sample.status = float(sample.index), ", "sample.status = "), "without a reward"),
    ],
)
def test_breaches_end_the_run_with_the_functions_name(rollouts, code: str, said: str) -> None:
    with pytest.raises(RunError, match="M407") as caught:
        rollouts(code)
    assert said in str(caught.value)


@pytest.mark.parametrize("answer", [False, True])
def test_a_function_that_logs(rollouts, tmp_path: Path, answer: bool) -> None:
    log = tmp_path / "log.py"
    log.write_text(
        f"""
def fn(rollout_id, args, samples, rollout_extra_metrics, rollout_time):
    rollout_extra_metrics["own/samples"] = len(samples)
    assert args.rollout_batch_size == 2 and rollout_time > 0
    return {answer}
""",
        encoding="utf-8",
    )
    (result,) = rollouts(LEGACY, "--custom-rollout-log-function-path", f"{log}:fn", count=1)
    assert result.metrics == {} if answer else result.metrics["own/samples"] == 2
    assert len(result.rows) == 2
