"""The logger wandb, with the real library and no server: its files are read back."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb")

from miles_core.config import DataOptions
from miles_core.errors import RunError
from miles_core.options import Config
from miles_loggers.options import WandbOptions
from miles_loggers.wandb import STATE, WandbLogger

KEY = "feedc0de" * 5
BLOCK = 32768


def log(run_dir: Path, first: dict[str, int], *rows: tuple[dict[str, float], int], steps: int = 1, **options: object) -> None:
    made = WandbOptions(**{"wandb_mode": "offline", **options})
    logger = WandbLogger(Config.of(made, DataOptions(num_steps_per_rollout=steps)))
    logger.start(str(run_dir), {"--lr": 1e-3, "--wandb-group": "g"}, first)
    for metrics, step in rows:
        logger.log(metrics, step)
    logger.close()


def records(run_dir: Path) -> list[Any]:
    """Every record of every offline run, in the order of their making."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda each: each.stat().st_mtime_ns):
        for raw in chunks(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(raw)
            found.append(record)
    return found


def chunks(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, which begins with a header of 7 bytes."""
    position, parts = 7, []
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        parts.append(content[position + 7 : position + 7 + size])
        position += 7 + size
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def history(run_dir: Path) -> list[dict[str, float]]:
    rows = []
    for record in records(run_dir):
        if record.WhichOneof("record_type") == "history":
            row = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in row.items() if not name.startswith("_")})
    return rows


def described(run_dir: Path) -> list[tuple[str, str, str]]:
    runs = [record.run for record in records(run_dir) if record.WhichOneof("record_type") == "run"]
    return [(run.run_id, run.run_group, run.display_name) for run in runs]


def test_rows_have_the_steps_of_their_axes(tmp_path: Path, first: dict[str, int]) -> None:
    log(tmp_path, first, ({"train/loss": 0.5}, 6), ({"rollout/raw_reward": 1.0, "perf/step_time": 2.0}, 3), ({"eval/set": 0.25}, 4))
    assert history(tmp_path) == [
        {"train/loss": 0.5, "train/step": 6},
        {"rollout/raw_reward": 1.0, "perf/step_time": 2.0, "rollout/step": 3},
        {"eval/set": 0.25, "eval/step": 4},
    ]
    metrics = [record.metric for record in records(tmp_path) if record.WhichOneof("record_type") == "metric"]
    assert {(each.glob_name, each.step_metric) for each in metrics if each.glob_name} == {
        *((f"{name}/*", "rollout/step") for name in ("rollout", "perf", "multi_turn", "passrate")),
        ("train/*", "train/step"),
        ("eval/*", "eval/step"),
    }


def test_rollouts_and_evaluations_may_count_optimizer_steps(tmp_path: Path, first: dict[str, int]) -> None:
    rows = [({"train/loss": 0.5}, 6), ({"rollout/raw_reward": 1.0}, 3), ({"eval/set": 0.25}, 4)]
    log(tmp_path, first, *rows, steps=2, wandb_always_use_train_step=True)
    found = history(tmp_path)
    assert [row.get("train/step", row.get("rollout/step", row.get("eval/step"))) for row in found] == [6, 6, 8]


def test_the_key_is_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(sys, "argv", ["miles", "run", "--wandb-key", KEY])
    log(tmp_path / "run", first, ({"train/loss": 0.5}, 0), wandb_key=KEY)
    assert sys.argv[-1] == KEY
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    said = capfd.readouterr()
    assert KEY not in said.out + said.err


def test_disabled_imports_and_writes_nothing(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from miles_core.options import Config
from miles_loggers.options import WandbOptions
from miles_loggers.wandb import WandbLogger
logger = WandbLogger(Config.of(WandbOptions(wandb_mode="disabled")))
logger.start({str(tmp_path)!r}, {{}}, {{"train": 0, "rollout": 0, "eval": 0}})
logger.log({{"train/loss": 1.0}}, 0)
logger.close()
assert "wandb" not in sys.modules
assert not list(Path({str(tmp_path)!r}).iterdir())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=tmp_path)


def test_the_variable_decides_where_the_option_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, int]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log(tmp_path, first, ({"train/loss": 1.0}, 0), wandb_mode=None)
    assert not list(tmp_path.iterdir())
    log(tmp_path, first, ({"train/loss": 1.0}, 0), wandb_mode="offline")
    assert history(tmp_path) == [{"train/loss": 1.0, "train/step": 0}]


def test_a_resumed_run_goes_on_in_its_run_with_every_step_once(tmp_path: Path, first: dict[str, int]) -> None:
    log(tmp_path, first, *[({"train/loss": float(step)}, step) for step in range(4)])
    log(tmp_path, {"train": 2, "rollout": 2, "eval": 2}, *[({"train/loss": 10.0 + step}, step) for step in (2, 3, 4)])
    assert [(row["train/step"], row["train/loss"]) for row in history(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 14)]
    ids = {each[0] for each in described(tmp_path)}
    assert ids == {json.loads((tmp_path / STATE).read_text())["run_id"]}


def test_a_run_that_begins_anew_in_a_used_folder_is_another(tmp_path: Path, first: dict[str, int]) -> None:
    log(tmp_path, first, ({"train/loss": 0.0}, 0))
    log(tmp_path, first, ({"train/loss": 1.0}, 0))
    assert [row["train/loss"] for row in history(tmp_path)] == [0.0, 1.0]
    assert len({each[0] for each in described(tmp_path)}) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"wandb_group": "g", "wandb_run_id": "abc"}, ("abc", "g_abc", "g_abc")),
        ({"wandb_group": "g", "wandb_run_id": "abc", "disable_wandb_random_suffix": True}, ("abc", "g", "g")),
        ({"wandb_run_id": "abc"}, ("abc", "folder_abc", "folder_abc")),
    ],
)
def test_names(tmp_path: Path, first: dict[str, int], options: dict[str, object], expected: tuple[str, str, str]) -> None:
    log(tmp_path / "folder", first, ({"train/loss": 0.0}, 0), **options)
    assert described(tmp_path / "folder")[0] == expected


def test_a_team_has_the_project(tmp_path: Path, first: dict[str, int]) -> None:
    """``--wandb-team`` and ``--wandb-project``."""
    log(tmp_path, first, ({"train/loss": 0.0}, 0), wandb_team="post-trainers", wandb_project="sums")
    (run,) = [record.run for record in records(tmp_path) if record.HasField("run")]
    assert (run.entity, run.project) == ("post-trainers", "sums")


def test_a_server_that_nobody_may_log_to_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, int]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(RunError) as caught:
        log(tmp_path / "run", first, wandb_mode="online", wandb_host="http://127.0.0.1:9")
    assert caught.value.code == "M467"
    assert "--wandb-mode offline" in caught.value.fix


def test_a_run_that_failed_is_told_so(tmp_path: Path, first: dict[str, int]) -> None:
    log(tmp_path / "well", first, ({"train/loss": 1.0}, 0))
    logger = WandbLogger(Config.of(WandbOptions(wandb_mode="offline")))
    logger.start(str(tmp_path / "badly"), {}, first)
    with pytest.raises(ValueError), contextlib.closing(logger):
        raise ValueError
    for name, code in (("well", 0), ("badly", 1)):
        codes = [record.exit.exit_code for record in records(tmp_path / name) if record.WhichOneof("record_type") == "exit"]
        assert codes == [code]
