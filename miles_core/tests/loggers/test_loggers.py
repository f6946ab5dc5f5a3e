"""The loggers console and jsonl."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pluggy
import pytest

from miles_core.errors import RunError
from miles_core.loggers.axes import by_axis, first_steps
from miles_core.loggers.console import ConsoleLogger
from miles_core.loggers.figures import clock, duration, evaluations, short
from miles_core.loggers.jsonl import JsonlLogger
from miles_core.loggers.timeline import Timeline
from miles_core.options import Config
from miles_core.plugins import hookspecs
from miles_core.protocols import MetricLogger


def jsonl(folder: Path, first: dict[str, int] | None = None) -> JsonlLogger:
    logger = JsonlLogger(Config([]))
    logger.start(str(folder), {}, first or {"train": 10**9, "rollout": 10**9, "eval": 10**9})
    return logger


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_both_are_registered_as_plugins_that_import_nothing_heavy() -> None:
    names = {point.name: point for point in entry_points(group="miles.logger") if point.dist.name == "miles-core"}
    assert sorted(names) == ["console", "jsonl"]
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(names["console"].load())
    manager.check_pending()
    (records,) = manager.hook.miles_logger()
    assert [record.name for record in records] == ["console", "jsonl"]
    for record in records:
        module, _, attribute = record.create.partition(":")
        made: MetricLogger = getattr(__import__(module, fromlist=[attribute]), attribute)(Config([]))
        made.close()
    heavy = {"torch", "ray", "rich", "matplotlib", "numpy"}
    script = f"import sys, miles_core.loggers.plugin; bad = {heavy} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_every_line_is_json_with_step_and_time(tmp_path: Path) -> None:
    logger = jsonl(tmp_path)
    logger.log({"train/loss": 0.25, "rollout/count": 3}, 7)
    (row,) = rows(tmp_path)
    assert row["step"] == 7
    assert row["time"] > 1.6e9
    assert row["train/loss"] == 0.25
    assert row["rollout/count"] == 3
    logger.close()


def test_numbers_that_json_lacks_are_named(tmp_path: Path) -> None:
    logger = jsonl(tmp_path)
    logger.log({"a/x": math.nan, "a/y": -math.inf, "a/z": 1.0}, 0)
    (row,) = rows(tmp_path)
    assert (row["a/x"], row["a/y"], row["a/z"]) == (None, None, 1.0)
    assert row["nonfinite"] == {"a/x": "nan", "a/y": "-inf"}


def test_a_resumed_run_goes_on_in_the_file_after_what_a_crash_left(tmp_path: Path) -> None:
    logger = jsonl(tmp_path)
    logger.log({"a/x": 1.0}, 0)
    logger.close()
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 1, "a/')
    logger = jsonl(tmp_path)
    logger.log({"a/x": 2.0}, 1)
    assert [(row["step"], row["a/x"]) for row in rows(tmp_path)] == [(0, 1.0), (1, 2.0)]
    (tmp_path / "metrics.jsonl").write_text("no newline", encoding="utf-8")
    jsonl(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == ""


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"M467 .*cannot write metrics to .*No such file"):
        jsonl(tmp_path / "missing")


def test_one_line_per_rollout_and_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    logger = ConsoleLogger(Config([]))
    logger.start("runs/x", {}, {"train": 0, "rollout": 0, "eval": 0})
    logger.log({"eval/heldout": 0.25, "eval/heldout-truncated_ratio": 0.1, "eval/heldout/response_len/mean": 6.0}, 0)
    logger.log({"train/loss": 0.5, "train/grad_norm": 12.345, "train/ppo_kl": 1.2e-6}, 12)
    logger.log({"train/loss": 0.4, "train/grad_norm": 2.0, "train/ppo_kl": 0.0}, 13)
    perf = {"perf/step_time": 0.84, "perf/rollout_phase_time": 0.4, "perf/train_time": 0.38, "perf/save_model_time": 0.0}
    logger.log({"rollout/raw_reward": 0.7125, "rollout/response_len/mean": 6.02, **perf}, 6)
    logger.log({"perf/step_time": 120.5}, 7)
    logger.close()
    assert capsys.readouterr().out.splitlines() == [
        "run folder runs/x",
        "evaluation after 0 rollouts  heldout 0.250",
        "rollout    6  reward 0.713  loss 0.400  kl 0.000  grad 2.000  length 6.0  0.84 s (generate 0.40, train 0.38)",
        "rollout    7  120.50 s",
    ]


def test_numbers_are_short() -> None:
    assert [short(x) for x in (0, 0.12345, 1.2e-5, -3.14159, 42.195, 512, 12345, 3.4e6, math.nan)] == [
        *("0.000", "0.123", "1.2e-05", "-3.142", "42.2", "512", "12.3k", "3.4M", "nan")
    ]
    assert [clock(x) for x in (7, 725, 11045)] == ["0:07", "12:05", "3:04:05"]
    assert [duration(x) for x in (0.84, 47.4, 125, 11045)] == ["0.84 s", "47 s", "2 min 5 s", "3 h 4 min"]
    assert evaluations({"eval/a": 1.0, "eval/a-pass@2": 1.0, "train/b": 0.0, "eval/a/x": 0.0}) == {"a": 1.0}


def test_a_resumed_run_cuts_off_what_it_makes_again(tmp_path: Path) -> None:
    logger = jsonl(tmp_path)
    for rollout in range(4):
        logger.log({"train/loss": 1.0}, 2 * rollout)
        logger.log({"train/loss": 1.0}, 2 * rollout + 1)
        logger.log({"rollout/raw_reward": 1.0, "perf/step_time": 1.0}, rollout)
    logger.log({"eval/set": 0.5}, 0)
    logger.log({"eval/set": 0.5}, 2)
    logger.log({"eval/set": 0.5}, 4)
    logger.close()
    logger = jsonl(tmp_path, {"train": 4, "rollout": 2, "eval": 3})
    logger.log({"train/loss": 2.0}, 4)
    logger.log({"rollout/raw_reward": 2.0}, 2)
    logger.close()
    found = rows(tmp_path)
    assert [(row["step"], row["train/loss"]) for row in found if "train/loss" in row] == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2)]
    assert [(row["step"], row["rollout/raw_reward"]) for row in found if "rollout/raw_reward" in row] == [(0, 1), (1, 1), (2, 2)]
    assert [row["step"] for row in found if "eval/set" in row] == [0, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("first", "interval", "expected"),
    [(0, None, (0, 0, 1)), (0, 2, (0, 0, 0)), (3, 2, (6, 3, 4)), (4, 2, (8, 4, 4)), (5, 2, (10, 5, 5)), (3, None, (6, 3, 4))],
)
def test_the_first_steps_of_a_run(first: int, interval: int | None, expected: tuple[int, int, int]) -> None:
    assert tuple(first_steps(first, 5, 2, interval).values()) == expected


def test_metrics_apart_by_axis() -> None:
    metrics = {
        "train/loss": 1.0,
        "train/critic-value_loss": 2.0,
        "eval/set/response_len/mean": 3.0,
        "perf/x": 4.0,
        "passrate/pass@1": 5.0,
    }
    assert by_axis(metrics) == {
        "train": {"train/loss": 1.0, "train/critic-value_loss": 2.0},
        "eval": {"eval/set/response_len/mean": 3.0},
        "rollout": {"perf/x": 4.0, "passrate/pass@1": 5.0},
    }


def test_the_timeline_has_each_phase_of_each_rollout_once(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path, 0)
    for rollout in (-1, 0, 1, 2):
        timeline.add("publish", rollout, 100.0 + rollout, 0.5)
    resumed = Timeline(tmp_path, 1)
    resumed.add("publish", 0, 299.0, 0.125)
    resumed.add("publish", 1, 300.0, 0.25)
    found = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["rollout"], row["start"], row["seconds"]) for row in found] == [
        (0, 100.0, 0.5),
        (-1, 299.0, 0.125),
        (1, 300.0, 0.25),
    ]
