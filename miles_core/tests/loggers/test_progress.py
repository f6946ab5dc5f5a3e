"""Live progress and the pace of a run."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from miles_core.loggers.pace import Pace
from miles_core.loggers.progress import Progress, spark


@dataclass
class Clock:
    time: float = 1000.0

    def __call__(self) -> float:
        return self.time


def plain(total: int, clock: Clock) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(total, console=Console(file=out, force_terminal=False, width=200), now=clock), out


def test_the_estimate_takes_in_what_comes_back_and_not_a_single_stall() -> None:
    pace = Pace(0.0)
    assert pace.seconds is None
    assert pace.remaining(10, 5.0) is None
    now = 0.0
    for rollout in range(100):
        now += 2.0 if rollout % 5 == 4 else 1.0
        pace.finish(now)
    assert pace.seconds == pytest.approx(1.2)
    now += 1000.0
    pace.finish(now)
    assert pace.seconds < 1.4
    assert pace.remaining(10, now) == pytest.approx(10 * pace.seconds)
    assert pace.remaining(10, now + 0.5) == pytest.approx(10 * pace.seconds - 0.5)
    assert pace.remaining(1, now + 50) == 0.0


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    clock = Clock()
    progress, out = plain(20, clock)
    progress.phase("start")
    clock.time += 30
    progress.resume(0)
    progress.phase("rollout")
    assert out.getvalue() == "0/20 rollouts (0 %) | generating | elapsed 0:30\n"
    for i in range(5):
        progress.phase("rollout")
        progress.advance(256, 512)
        clock.time += 1
        progress.finish_rollout(
            {"rollout/raw_reward": 0.5 + i / 10, "train/loss": 0.1, "perf/step_time": 1.0, "rollout/response_len/mean": 6.5}
        )
    assert out.getvalue().count("\n") == 1
    clock.time += 6
    progress.phase("rollout")
    progress.advance(100, 512)
    expected = (
        "5/20 rollouts (25 %) | generating 0:00, 0:01 left | reward 0.900 | loss 0.100 | 512 samples/s | 3328 tokens/s"
        " | elapsed 0:41 | ETA 0:14"
    )
    assert out.getvalue().splitlines()[1] == expected
    progress.message("[a note] 1/2")
    progress.close()
    progress.close()
    assert out.getvalue().splitlines()[2] == "[a note] 1/2"


def test_a_resumed_run_counts_only_its_own_rollouts_into_the_pace() -> None:
    clock = Clock()
    progress, _ = plain(100, clock)
    clock.time += 60
    progress.resume(90)
    clock.time += 2
    progress.finish_rollout({})
    assert progress.line() == "91/100 rollouts (91 %) | starting processes 1:02 | elapsed 1:02 | ETA 0:18"


def test_what_counts_has_a_rate_and_an_estimate() -> None:
    clock = Clock()
    progress, _ = plain(4, clock)
    for phase, label in (("rollout", "generating"), ("evaluate", "evaluating")):
        progress.phase(phase)
        progress.advance(0, 40)
        assert f"| {label} 0/40 |" in progress.line()
        clock.time += 5
        progress.advance(10, 40)
        # 10 in 5 s, so 30 more in 15 s.
        assert f"| {label} 10/40, 2.000/s, 0:15 left |" in progress.line()
        progress.advance(40, 40)
        assert f"| {label} 40/40, 8.000/s |" in progress.line()


def test_what_does_not_count_takes_as_long_as_before() -> None:
    clock = Clock()
    progress, _ = plain(4, clock)
    for phase, label in (("train", "training"), ("publish", "publishing weights")):
        for seconds in (8, 10, 60):
            progress.phase(phase)
            clock.time += seconds
            progress.phase("rollout")
        progress.phase(phase)
        clock.time += 4
        assert f"| {label} 0:04, 0:06 left |" in progress.line()
        clock.time += 20
        assert f"| {label} 0:24, 0:00 left |" in progress.line()
    for _ in range(3):
        progress.phase("offload")
        clock.time += 0.2
        progress.phase("rollout")
    progress.phase("offload")
    assert ", 0:00 left" not in progress.line(), "what takes no time has no estimate"


def test_on_a_terminal_it_is_drawn_in_place_below_other_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    out = io.StringIO()
    clock = Clock()
    console = Console(file=out, force_terminal=True, width=100, color_system=None, _environ={"TERM": "xterm"})
    progress = Progress(10, console=console, now=clock)
    progress.resume(0)
    for reward in (0.1, 0.5, 0.9):
        progress.phase("rollout")
        progress.advance(32, 64)
        clock.time += 2
        progress.finish_rollout({"rollout/raw_reward": reward, "perf/step_time": 2.0, "rollout/generated_samples": 96.0})
    progress.phase("train")
    progress.message("a note")
    progress.close()
    assert "a note" in out.getvalue()
    shown = Console(file=io.StringIO(), width=100, color_system=None)
    shown.print(progress)
    head, below = shown.file.getvalue().splitlines()
    assert head.startswith("━")
    assert "3/10 rollouts elapsed 0:06 ETA 0:14" in " ".join(head.split())
    assert below.split("  ") == ["training", "reward 0.900", "48.0 samples/s", "▁▅█"]


def test_sparks() -> None:
    assert spark([0.0, 0.5, 1.0]) == "▁▅█"
    assert spark([2.0, 2.0]) == "▁▁"
