"""Loops, publish intervals and staleness, against everything that depends on them."""

from __future__ import annotations

import pytest

from miles_core.cli.dry_run import describe
from miles_core.config import LoopOptions
from miles_core.runtime.loops import LOOPS
from miles_core.runtime.loops.schedule import Schedule

APART = ["--rollout-num-gpus 1"]


def test_every_loop_that_can_be_named_is_there() -> None:
    choices = LoopOptions.__dataclass_fields__["loop"].metadata
    assert sorted(LOOPS) == sorted(next(c for c in _choices(choices)))


def _choices(metadata):
    for value in metadata.values():
        found = getattr(value, "choices", None)
        if found:
            yield found


@pytest.mark.parametrize(
    ("changes", "drop", "code", "parts"),
    [
        (["--loop one-step"], [], "M227", ("--loop one-step (argument", "--colocate", "--rollout-num-gpus")),
        (["--loop async"], [], "M227", ("--loop async", "--colocate")),
        (["--loop async", "--offload", *APART], ["--colocate"], "M227", ("--offload-rollout", "leave --offload")),
        (["--update-weights-interval 2"], [], "M227", ("--update-weights-interval 2", "--no-offload-rollout")),
        (["--loop async", "--over-sampling-batch-size 8", *APART], ["--colocate"], "M228", ("--over-sampling-batch-size 8",)),
        (["--loop async", "--keep-old-actor", *APART], ["--colocate"], "M228", ("--keep-old-actor", "--use-rollout-logprobs")),
        (["--loop one-step", "--debug-rollout-only", *APART], ["--colocate"], "M228", ("--debug-rollout-only",)),
        (["--loop one-step", "--loss-type imitate", *APART], ["--colocate"], "M228", ("--loss-type imitate",)),
        (["--loop one-step", "--true-on-policy-mode", *APART], ["--colocate"], "M229", ("--true-on-policy-mode",)),
        (
            ["--update-weights-interval 2", "--no-offload-rollout", "--true-on-policy-mode"],
            [],
            "M229",
            ("--update-weights-interval",),
        ),
        (["--max-staleness 0", "--loop async", *APART], ["--colocate"], "M209", ("--max-staleness 0", "1 or more")),
    ],
)
def test_what_does_not_go_together(cli, changes: list[str], drop: list[str], code: str, parts: tuple[str, ...]) -> None:
    lines = [line for line in cli.errors(cli.but(*changes, drop=drop)) if line.startswith(code)]
    assert len(lines) == 1, cli.errors(cli.but(*changes, drop=drop))
    assert all(part in lines[0] for part in parts), lines[0]


@pytest.mark.parametrize(
    ("changes", "drop", "said"),
    [
        (["--max-staleness 3"], [], "--max-staleness 3 (argument"),
        (["--keep-old-actor"], [], "engines always serve the trainer's weights"),
        (["--keep-old-actor", "--use-rollout-logprobs"], [], "takes the engine's log-probs"),
        (["--loop one-step", *APART], ["--colocate"], "as if the current ones had made them"),
        (["--update-weights-interval 3", "--no-offload-rollout"], [], "as if the current ones had made them"),
    ],
)
def test_warnings(cli, changes: list[str], drop: list[str], said: str) -> None:
    planned = cli.plan(cli.but(*changes, drop=drop))
    assert planned.errors == []
    assert any(said in line for line in planned.warnings), planned.warnings


@pytest.mark.parametrize(
    ("changes", "plan"),
    [
        (["--loop one-step", "--keep-old-actor"], "one-step: generates the next rollout while this one is trained on"),
        (
            ["--loop async", "--use-rollout-logprobs", "--max-staleness 2", "--update-weights-interval 2"],
            "async: generates all the time, at most 2 versions ahead; new weights every 2 rollouts",
        ),
    ],
)
def test_loops_that_are_accepted_without_a_word(cli, changes: list[str], plan: str) -> None:
    planned = cli.plan(cli.but(*changes, *APART, drop=["--colocate"]))
    assert planned.errors == []
    assert not any("--loop" in line or "--keep-old-actor" in line or "--max-staleness" in line for line in planned.warnings)
    assert f"\nloop        {plan}" in describe(planned)


def test_engines_that_keep_their_weights_may_serve_them_for_longer(cli) -> None:
    assert cli.errors(cli.but("--update-weights-interval 2", "--no-offload-rollout", "--keep-old-actor")) == []


def test_schedule() -> None:
    schedule = Schedule(10, publish_every=3, evaluate_every=4, saves=True, save_every=5)
    assert [i for i in range(10) if schedule.evaluates_after(i)] == [3, 7, 9]
    assert [i for i in range(10) if schedule.saves_after(i)] == [4, 9]
    # After every third, before each evaluation, with each state, and at the end.
    assert [i for i in range(10) if schedule.publishes_after(i)] == [2, 3, 4, 5, 7, 8, 9]
    assert [i for i in range(4) if Schedule(4).publishes_after(i)] == [0, 1, 2, 3]
    assert not any(Schedule(4, save_every=1).saves_after(i) or Schedule(4).evaluates_after(i) for i in range(4))
