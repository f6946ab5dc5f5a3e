"""Evaluations by the manager: settings of each set, and functions that evaluate or log."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miles_core.errors import RunError, UsageErrors
from miles_core.rollout.manager import RolloutManager
from miles_core.rollout.optional_metrics import pass_at

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"
GRPO = ("--algo", "grpo", "--label-key", "label", "--rollout-batch-size", 2, "--n-samples-per-prompt", 2)
SHORT = ("--rollout-max-response-len", 64)


def sums(count: int) -> list[dict[str, object]]:
    return [{"input": f"{i}+1", "label": str(i + 1)} for i in range(count)]


def half(text: str, seed: int) -> str:
    """Right for every second seed."""
    found = re.search(r"(\d+)\+1", text)
    assert found is not None
    return str(int(found[1]) + (1 if seed % 2 else 2))


@pytest.fixture
def evaluate(plan, serve, write, tmp_path: Path) -> Callable[..., tuple[dict[str, float], list[Any], Path]]:
    """Metrics of an evaluation of two sets, the requests, and the run's folder."""

    def run(document: object = None, *arguments: object, answer=half, reward: tuple[str, ...] = ("--rm-type", "exact")):
        oracle, url = serve(answer)
        names = {name: write(*sums(count), name=f"{name}.jsonl") for name, count in (("a", 6), ("b", 3), ("train", 4))}
        words = ["--eval-interval", 1, "--prompt-data", names["train"], *reward]
        if document is None:
            words += ["--eval-prompt-data", "a", names["a"], "b", names["b"]]
        else:
            path = tmp_path / "eval.yaml"
            path.write_text(json.dumps(document).replace("FOLDER", str(tmp_path)), encoding="utf-8")
            words += ["--eval-config", path]
        made = plan(*GRPO, *SHORT, *words, *arguments)

        async def whole() -> dict[str, float]:
            manager = RolloutManager(*made)
            try:
                await manager.start([url])
                return await manager.evaluate(0)
            finally:
                await manager.close()

        return asyncio.run(whole()), [request for batch in oracle.batches for request in batch], made[1].run_dir

    return run


def test_each_set_has_its_own_settings(evaluate) -> None:
    metrics, requests, folder = evaluate(
        {
            "datasets": {
                "a": {"path": "FOLDER/a.jsonl", "n_samples_per_eval_prompt": 4, "stop": ["!"]},
                "b": {
                    "path": "FOLDER/b.jsonl",
                    "temperature": 0.25,
                    "stop": "?",
                    "stop_token_ids": [5, 6],
                    "rm_type": "exact",
                    "min_new_tokens": 2,
                    "max_context_len": 9,
                    "metadata_overrides": {"level": 3},
                },
            }
        },
        "--log-passrate",
        "--rollout-stop",
        ";",
    )
    of = {name: [r for r in requests if r.rid.startswith(f"eval-0-{number}-")] for number, name in enumerate("ab")}
    assert {name: len(found) for name, found in of.items()} == {"a": 24, "b": 3}
    assert {(r.params.temperature, r.params.stop, r.params.stop_token_ids, r.params.max_new_tokens) for r in of["a"]} == {
        (1.0, ("!",), (), 64)
    }
    assert {(r.params.temperature, r.params.stop, r.params.stop_token_ids, r.params.max_new_tokens) for r in of["b"]} == {
        (0.25, ("?",), (5, 6), 6)
    }
    assert {r.params.min_new_tokens for r in of["b"]} == {2}
    # pass@k uses the set's own number of samples, and a set of one response has none.
    assert [name for name in metrics if "pass@" in name] == ["eval/a-pass@1", "eval/a-pass@2", "eval/a-pass@4"]
    rows = [json.loads(line) for line in (folder / "samples" / "eval_a_1.jsonl").read_text("utf-8").splitlines()]
    correct = [sum(row["reward"] == 1 for row in rows if row["group"] == group) for group in range(6)]
    assert metrics["eval/a-pass@2"] == pytest.approx(sum(pass_at(4, c, 2) for c in correct) / 6)
    assert metrics["eval/a"] == pytest.approx(sum(correct) / 24)


ZERO = """
def zero(sample):
    return 0.0
"""


def test_a_sets_reward_wins_over_the_runs_function(evaluate, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(ZERO, encoding="utf-8")
    metrics, _, _ = evaluate(
        {"datasets": {"a": {"path": "FOLDER/a.jsonl"}, "b": {"path": "FOLDER/b.jsonl", "rm_type": "exact"}}},
        answer=lambda text, seed: half(text, 1),
        reward=("--custom-rm-path", f"{own}:zero"),
    )
    assert (metrics["eval/a"], metrics["eval/b"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ({"rm_type": "no_such_reward"}, "M101"),
        ({"custom_generate_function_path": "no_such_module.fn"}, "M111"),
        ({"stop": [""]}, "M216"),
        ({"stop_token_ids": [-1]}, "M216"),
        ({"metadata_overrides": [1]}, "M216"),
        ({"max_context_len": 1}, "M216"),
        ({"rm_tpye": "exact"}, "M321"),
    ],
)
def test_settings_are_checked_before_anything_starts(evaluate, setting: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageErrors) as caught:
        evaluate({"datasets": {"a": {"path": "FOLDER/a.jsonl", **setting}}})
    assert [error.code for error in caught.value.errors] == [code]


def test_a_set_may_have_its_own_generate_function(evaluate) -> None:
    def calls(text: str, seed: int) -> str:
        return "done" if "</result>" in text else f"<calc>{half(text, 1)}-1</calc>"

    _, requests, _ = evaluate(
        {
            "datasets": {
                "a": {"path": "FOLDER/a.jsonl", "custom_generate_function_path": "calculator"},
                "b": {"path": "FOLDER/b.jsonl"},
            }
        },
        answer=calls,
    )
    assert [sum(r.rid.startswith(f"eval-0-{n}-") for r in requests) for n in (0, 1)] == [12, 3]


FUNCTIONS = {
    "metrics of its own": """
async def fn(rollout_id, sets, generate):
    await generate(sets["b"])
    return {"best": max(sample.reward for group in sets["b"] for sample in group), "eval/seen": rollout_id}
""",
    "rewards by set": """
def fn(args, rollout_id, data_source, evaluation=False):
    groups = data_source.get_samples(2)
    assert evaluation and args.eval_interval == 1
    return {"a": {"rewards": [1.0, 0.0, None], "truncated": [True, False, False]}, "asked": len(groups)}
""",
}
EXPECTED = {"metrics of its own": {"eval/best": 1.0, "eval/seen": 0.0}, "rewards by set": {"eval/a": 0.5, "eval/asked": 2.0}}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_evaluates(evaluate, tmp_path: Path, name: str) -> None:
    own = tmp_path / "own.py"
    own.write_text(FUNCTIONS[name], encoding="utf-8")
    metrics, requests, _ = evaluate(None, "--eval-function-path", f"{own}:fn", answer=lambda text, seed: half(text, 1))
    assert {key: value for key, value in metrics.items() if "truncated" not in key} == EXPECTED[name]
    assert len(requests) == (3 if name == "metrics of its own" else 0)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("async def fn(rollout_id, sets, generate):\n    return 3", "returned int"),
        ("async def fn(rollout_id, sets, generate):\n    return {'a': {'rewards': []}}", "no rewards for a"),
        ("async def fn(rollout_id, sets, generate):\n    return {'a': 'good'}", "a metric 'a' that is str"),
        ("async def fn(rollout_id, sets, generate):\n    await generate([list(sets['a'][0])])\n    return {}", "of no set"),
        ("async def fn(rollout_id, sets, generate):\n    raise KeyError('x')", "failed with KeyError"),
    ],
)
def test_what_a_function_that_evaluates_must_return(evaluate, tmp_path: Path, code: str, said: str) -> None:
    own = tmp_path / "own.py"
    own.write_text(code, encoding="utf-8")
    with pytest.raises(RunError, match="M407") as caught:
        evaluate(None, "--eval-function-path", f"{own}:fn")
    assert said in str(caught.value)


@pytest.mark.parametrize("answer", [False, True])
def test_a_function_that_logs(evaluate, tmp_path: Path, answer: bool) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        f"""
def fn(rollout_id, args, data, extra_metrics):
    assert args.eval_interval == 1
    extra_metrics["own/best"] = max(data["a"]["rewards"])
    assert len(data["b"]["samples"]) == len(data["b"]["truncated"]) == 3
    return {answer}
""",
        encoding="utf-8",
    )
    metrics, _, _ = evaluate(None, "--custom-eval-rollout-log-function-path", f"{own}:fn", answer=lambda text, seed: half(text, 1))
    assert metrics == {} if answer else metrics["own/best"] == metrics["eval/a"] == 1.0


def test_the_example_of_the_page(evaluate, tmp_path: Path) -> None:
    found = re.search(r"## A function that evaluates\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    own = tmp_path / "own.py"
    own.write_text(found[1], encoding="utf-8")
    metrics, requests, _ = evaluate(None, "--eval-function-path", f"{own}:best_of", "--n-samples-per-eval-prompt", 8)
    assert set(metrics) == {"eval/a-best", "eval/b-best"}
    assert metrics["eval/a-best"] > 0.9
    assert len(requests) == 8 * 9
