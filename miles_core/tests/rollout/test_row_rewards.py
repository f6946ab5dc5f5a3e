"""Rows that name their reward, rewards of whole groups, and the share of failures that ends a run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from miles_core.config import PluginOptions
from miles_core.errors import RunError
from miles_core.options import Config
from miles_core.options.resolve import resolve
from miles_core.rollout.grading import Grader, Tally
from miles_core.rollout.manager import ManagerInfo, RolloutManager, RolloutResult
from miles_core.rollout.row_rewards import RowRewards
from miles_core.runtime.checks.placement import Machine
from miles_core.runtime.plan import RunPlan
from miles_core.runtime.planning import plan_run
from miles_core.samples import Invalid, Sample, Score, Scored, Timeout

T = TypeVar("T")
SIZES = ["--rollout-batch-size", 4, "--n-samples-per-prompt", 2, "--rollout-max-response-len", 128]
RUN = ["--algo", "grpo", "--label-key", "label", *SIZES]


def run(made: tuple[Config, RunPlan], url: str, work: Callable[[RolloutManager, ManagerInfo], Awaitable[T]]) -> T:
    async def whole() -> T:
        manager = RolloutManager(*made)
        try:
            return await work(manager, await manager.start([url]))
        finally:
            await manager.close()

    return asyncio.run(whole())


def row(name: object, label: str) -> dict[str, object]:
    return {"input": f"a question of {name}", "label": label, "metadata": {} if name is None else {"rm_type": name}}


def test_rows_name_their_reward(plan, serve, write, tmp_path: Path) -> None:
    _, url = serve(lambda text, seed: "\\boxed{7} Answer: B")
    rows = [row(None, "7"), row(" gpqa ", "B"), row("exakt", "7"), row("gpqa", "C")]
    made = plan(*RUN, "--rm-type", "math", "--prompt-data", write(*rows))
    notices: list[str] = []

    async def work(manager: RolloutManager, info: ManagerInfo) -> RolloutResult:
        notices.extend(info.notices)
        return await manager.generate(0)

    result = run(made, url, work)
    assert len(notices) == 1
    assert notices[0].startswith("1 rows name the reward 'exakt' and will count as not gradable: M101 ")
    assert [r.raw_reward for r in result.rows][:4] == [1.0] * 4
    assert [r.raw_reward for r in result.rows][6:] == [0.0] * 2
    assert [bool(r.mask.any()) for r in result.rows] == [True] * 4 + [False] * 2 + [True] * 2
    assert result.metrics["rollout/reward_failures/invalid"] == 2
    written = [json.loads(line) for line in (tmp_path / "run" / "samples" / "rollout_0.jsonl").read_text("utf-8").splitlines()]
    assert [each["graded"] for each in written] == [True] * 4 + [False] * 2 + [True] * 2
    assert "'exakt' cannot be used" in written[4]["detail"]


@pytest.mark.parametrize("name", ["dapo", "deepscaler", "f1", "gpqa", "math", "boxed_dapo", "boxed_f1", "exact"])
def test_too_many_failures_of_any_type_stop_the_run(name: str, plan, serve, write) -> None:
    _, url = serve(lambda text, seed: "x")
    rows = [{"input": f"{i}", "label": None if i else "A"} for i in range(4)]
    made = plan(*RUN, "--rm-type", name, "--reward-key", "score", "--prompt-data", write(*rows))
    with pytest.raises(RunError, match=r"M402 .*6 of 8 samples could not be graded \(6 invalid") as caught:
        run(made, url, lambda manager, info: manager.generate(0))
    assert caught.value.owner == f"reward {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math", "deepscaler", "boxed_dapo"])
def test_a_response_that_hangs_its_grader_is_masked(name: str, plan, serve, write, tmp_path: Path) -> None:
    hang = r"</think>\boxed{\sum_{n=1}^{9999} \frac{x}{(n^{99}+1)^{99}}}"
    _, url = serve(lambda text, seed: hang if "hang" in text else r"</think>\boxed{y+\sqrt{2}}")
    rows = [{"input": "hang" if i == 1 else f"{i}", "label": r"\sqrt{2}+y"} for i in range(4)]
    words = ["--rm-type", name, "--reward-key", "acc", "--reward-timeout", 1.0]
    result = run(plan(*RUN, *words, "--prompt-data", write(*rows)), url, lambda manager, info: manager.generate(0))
    assert [bool(r.mask.any()) for r in result.rows] == [True, True, False, False, True, True, True, True]
    assert result.metrics["rollout/reward_failures/timeout"] == 2
    assert result.metrics["rollout/raw_reward"] == 1.0
    written = [json.loads(line) for line in (tmp_path / "run" / "samples" / "rollout_0.jsonl").read_text("utf-8").splitlines()]
    assert [each["detail"] for each in written if not each["graded"]] == ["the grader was killed"] * 2


def test_a_dict_is_read_by_its_key_in_training_and_in_evaluation(plan, serve, write) -> None:
    _, url = serve(lambda text, seed: "Answer: 8")
    data = write(*(row(None, "7") for _ in range(4)))
    words = ["--rm-type", "dapo", "--reward-key", "score", "--eval-reward-key", "acc", "--eval-prompt-data", "held", data]
    made = plan(*RUN, *words, "--eval-interval", 1, "--prompt-data", data)

    async def work(manager: RolloutManager, info: ManagerInfo) -> tuple[RolloutResult, dict[str, float]]:
        return await manager.generate(0), await manager.evaluate(0)

    result, metrics = run(made, url, work)
    assert [r.raw_reward for r in result.rows] == [-1.0] * 8
    assert metrics["eval/held"] == 0.0


@pytest.mark.parametrize("function", ["async def grade(samples)", "def grade(args, samples)"])
def test_a_group_is_graded_at_once(function: str, plan, serve, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, url = serve(lambda text, seed: "x" * (1 + seed % 5))
    body = "    lengths = [len(s.response_ids) for s in samples]\n    return [float(n == max(lengths)) for n in lengths]\n"
    module = f"group_reward_{len(function)}"
    (tmp_path / f"{module}.py").write_text(f"{function}:\n{body}", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = plan(
        *RUN, "--group-rm", "--custom-rm-path", f"{module}.grade", "--prompt-data", write(*(row(None, "7") for _ in "1234"))
    )
    result = run(made, url, lambda manager, info: manager.generate(0))
    rows = result.rows
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        longest = max(first.response_length, second.response_length)
        assert [first.raw_reward, second.raw_reward] == [float(r.response_length == longest) for r in (first, second)]


class Fixed:
    """A reward that always says the same, or raises it."""

    def __init__(self, *scores: Score | Exception) -> None:
        self.scores = scores
        self.closed = False

    async def score(self, samples: Sequence[Sample]) -> list[Score]:
        found = [self.scores[i % len(self.scores)] for i in range(len(samples))]
        for score in found:
            if isinstance(score, Exception):
                raise score
        return found  # type: ignore[return-value]

    async def close(self) -> None:
        self.closed = True


def test_one_reward_that_fails_leaves_the_others_alone() -> None:
    samples = [Sample(index=0, response="x"), Sample(index=1, response="7", label="B", metadata={"rm_type": "gpqa"})]
    default = Fixed(KeyError("label"))
    tally = Tally()

    async def work() -> None:
        rewards = RowRewards(default, "mine", Config.of(PluginOptions()))
        await Grader(rewards, "mine", None).grade(samples, tally)
        await rewards.close()

    asyncio.run(work())
    assert [s.score for s in samples] == [Invalid("KeyError: 'label'"), Scored(0.0, "no choice found")]
    assert (tally.graded, tally.invalid) == (1, 1)
    assert default.closed


@pytest.mark.parametrize("name", [7, ["math"], "miles-rewards:nothing"])
def test_what_is_no_name_is_a_failure(name: object) -> None:
    async def work() -> list[Score]:
        return await RowRewards(Fixed(Timeout(1.0)), "mine", Config.of(PluginOptions())).score([Sample(metadata={"rm_type": name})])

    (score,) = asyncio.run(work())
    assert isinstance(score, Invalid)
    assert "cannot be used: M101" in score.detail


def test_a_blocked_distribution_is_not_imported_for_a_row() -> None:
    async def work() -> list[Score]:
        config = Config.of(PluginOptions(block_plugins=["miles-rewards"]))
        return await RowRewards(Fixed(Scored(1.0)), "mine", config).score([Sample(metadata={"rm_type": "f1"})])

    (score,) = asyncio.run(work())
    assert isinstance(score, Invalid)


def test_a_reward_that_returns_too_few_scores_breaks_its_contract() -> None:
    class Short(Fixed):
        async def score(self, samples: Sequence[Sample]) -> list[Score]:
            return []

    async def work() -> None:
        samples = [Sample(label="A", response=""), Sample(label="A", response="", metadata={"rm_type": "gpqa"})]
        await Grader(RowRewards(Short(), "mine", Config.of(PluginOptions())), "mine", None).grade(samples, Tally())

    with pytest.raises(RunError, match="M404"):
        asyncio.run(work())


def test_grading_by_group_that_a_reward_does_not_do_is_told(checkpoint: Path, write, tmp_path: Path) -> None:
    base = ["--backend", "fsdp", "--hf-checkpoint", checkpoint, "--num-rollout", 1, "--colocate", "--actor-num-gpus-per-node", 1]
    words = [*base, *RUN, "--rm-type", "math", "--group-rm", "--prompt-data", write(row(None, "7")), "--run-dir", tmp_path / "run"]
    planned = plan_run(resolve([str(word) for word in words], environment={}), Machine(cpus=8, gpus=0))
    assert [line for line in planned.warnings if "--group-rm" in line] == [
        f"--group-rm (argument {words.index('--group-rm') + 1}) has no effect: the reward math grades samples one by one"
    ]
