"""The logger tensorboard, with the real library: what it writes is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from miles_core.options import Config
from miles_loggers.options import TensorboardOptions
from miles_loggers.tensorboard import TensorboardLogger


def log(run_dir: Path, first: dict[str, int], *rows: tuple[dict[str, float], int], **options: str) -> None:
    logger = TensorboardLogger(Config.of(TensorboardOptions(**options)))
    logger.start(str(run_dir), {}, first)
    for metrics, step in rows:
        logger.log(metrics, step)
    logger.close()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_metrics_have_the_steps_of_their_axes(tmp_path: Path, first: dict[str, int]) -> None:
    log(
        tmp_path,
        first,
        ({"train/loss": 0.5}, 6),
        ({"train/loss": 0.25}, 7),
        ({"rollout/raw_reward": 1.0, "perf/step_time": 2.0}, 3),
    )
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": [(6, 0.5), (7, 0.25)],
        "rollout/raw_reward": [(3, 1.0)],
        "perf/step_time": [(3, 2.0)],
    }


def test_a_resumed_run_has_every_step_once(tmp_path: Path, first: dict[str, int]) -> None:
    rows = [({"train/loss": float(step)}, step) for step in range(8)] + [({"rollout/raw_reward": float(r)}, r) for r in range(4)]
    log(tmp_path, first, *rows, ({"eval/set": 0.5}, 0), ({"eval/set": 0.7}, 4))
    resumed = {"train": 4, "rollout": 2, "eval": 3}
    log(tmp_path, resumed, ({"train/loss": 40.0}, 4), ({"rollout/raw_reward": 20.0}, 2))
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss"] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert found["rollout/raw_reward"] == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert found["eval/set"] == [(0, 0.5)]


@pytest.mark.parametrize(
    ("base", "options", "expected"),
    [
        (None, {}, "runs/one/tensorboard"),
        (None, {"tb_project_name": "p"}, "tensorboard_log/p/one"),
        (None, {"tb_project_name": "p", "tb_experiment_name": "e"}, "tensorboard_log/p/e"),
        ("logs", {}, "logs/one"),
        ("logs", {"tb_project_name": "p", "tb_experiment_name": "e"}, "logs/p/e"),
        (None, {"tb_experiment_name": "e"}, "runs/one/tensorboard"),
    ],
)
def test_where_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, int], base: str | None, options: dict[str, str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if base is not None:
        monkeypatch.setenv("TENSORBOARD_DIR", base)
    log(Path("runs/one"), first, ({"train/loss": 1.0}, 0), **options)
    assert scalars(tmp_path / expected) == {"train/loss": [(0, 1.0)]}
    assert {path.parent for path in tmp_path.rglob("events*")} == {tmp_path / expected}


def test_two_runs_of_one_name_have_a_folder_each_and_a_resumed_one_finds_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, int]
) -> None:
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "logs"))
    for number in (0, 1):
        log(tmp_path / f"run{number}", first, ({"train/loss": float(number)}, 0), tb_experiment_name="same")
    log(tmp_path / "run1", {"train": 1, "rollout": 1, "eval": 1}, ({"train/loss": 9.0}, 1), tb_experiment_name="same")
    assert scalars(tmp_path / "logs/same") == {"train/loss": [(0, 0.0)]}
    assert scalars(tmp_path / "logs/same-2") == {"train/loss": [(0, 1.0), (1, 9.0)]}


def test_event_files_that_nobody_marked_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, int]
) -> None:
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path))
    (tmp_path / "same").mkdir()
    (tmp_path / "same/events.out.tfevents.1.other").write_bytes(b"theirs")
    log(tmp_path / "run", first, ({"train/loss": 1.0}, 0), tb_experiment_name="same")
    assert (tmp_path / "same/events.out.tfevents.1.other").read_bytes() == b"theirs"
    assert len(list((tmp_path / "same").iterdir())) == 1
    assert scalars(tmp_path / "same-2") == {"train/loss": [(0, 1.0)]}
