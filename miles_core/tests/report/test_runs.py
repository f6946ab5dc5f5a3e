"""Runs at a glance, and the commands runs and report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from miles_core.cli.main import main
from miles_core.errors import UsageError
from miles_core.report import content
from miles_core.report.content import curves, finite, sample_files, thinned
from miles_core.report.lifetime import lifetime
from miles_core.report.runs import TAIL, find_run, find_runs, glance


def test_a_run_at_a_glance(run: Path) -> None:
    found = glance(run)
    assert (found.name, found.state, found.done, found.total) == ("first", "finished", 12, 12)
    assert found.reward == pytest.approx(1 - 2.718281828 ** (-11 / 4))
    assert dict(found.evaluations) == {"held_out": 0.65}
    assert found.seconds is not None
    assert found.seconds >= 0


def test_a_glance_reads_the_end_of_a_large_file_only(tmp_path: Path) -> None:
    row = {"step": 0, "time": 1.0, "perf/step_time": 1.0, "rollout/raw_reward": 0.5, "rollout/text": 1.0}
    with (tmp_path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.write('{"step": 0, "time": 1.0, "eval/early": 0.5}\n')
        for step in range(3 * TAIL // 100):
            file.write(json.dumps({**row, "step": step}) + "\n")
        file.write('{"step": 99999999, "perf/st')
    found = glance(tmp_path)
    assert found.done == 3 * TAIL // 100
    assert dict(found.evaluations) == {}


def test_a_failed_run_says_why_and_a_killed_one_that_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), lifetime(_made(tmp_path / "a"), 4):
        raise ValueError("odd data")
    script = f"""
import os
from pathlib import Path
from miles_core.report.lifetime import lifetime
with lifetime(Path({str(_made(tmp_path / "b"))!r}), 9):
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    with lifetime(_made(tmp_path / "c"), 5):
        assert main(["runs", "list", str(tmp_path)]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["RUN", "STATE", "ROLLOUTS", "REWARD", "EVALUATION", "TIME"]
    assert [line[:3] for line in lines[1:]] == [["a", "failed", "0/4"], ["b", "killed", "0/9"], ["c", "running", "0/5"]]
    assert main(["runs", "show", str(tmp_path / "a")]) == 0
    assert "ValueError: odd data" in capsys.readouterr().out


def test_list_and_show(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(run.parent.parent)
    assert main(["runs", "list", str(run.parent)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:6] == ["first", "finished", "12/12", "0.936", "held_out", "0.650"]
    assert main(["runs", "list", str(run.parent), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["state"], facts["done"]) == ("first", "finished", 12)
    assert main(["runs", "show", str(run)]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert ["state", "finished"] in lines
    assert ["eval", "held_out  0.650"] in lines


def test_a_run_is_found_by_its_name_below_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "runs" / "named")
    monkeypatch.chdir(tmp_path)
    assert find_run("named") == Path("runs/named")
    assert [path.name for path in find_runs(Path("runs"))] == ["named"]
    assert find_runs(tmp_path / "none") == []


def test_no_such_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(UsageError) as caught:
            find_run(name)
        assert caught.value.code == "M307"
    assert main(["runs", "show", str(tmp_path)]) == 2
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert "no run in" in capsys.readouterr().out


def test_the_page_is_one_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "page.html (0." in capsys.readouterr().out
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert main(["report", str(run), "-o", str(tmp_path / "none" / "page.html")]) == 2
    assert capsys.readouterr().err.startswith("M308 ")


def test_the_commands_import_nothing_heavy_and_start_at_once(run: Path) -> None:
    heavy = {"torch", "ray", "transformers", "aiohttp", "numpy", "rich", "wandb", "tensorboard"}
    script = f"""
import sys
from miles_core.cli.main import main
assert main(["runs", "list", {str(run.parent)!r}]) == 0
assert main(["runs", "show", {str(run)!r}]) == 0
assert main(["report", {str(run)!r}, "-o", {os.devnull!r}]) == 0
found = {heavy} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, stdout=subprocess.DEVNULL)
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "miles_core.cli.main", "runs", "list", str(run.parent)],
            check=True,
            timeout=60,
            capture_output=True,
        )
        spent.append(time.perf_counter() - started)
    # The best of some: the machine may be busy with other things.
    assert min(spent) < 0.5


def test_long_curves_keep_their_ends_and_every_peak() -> None:
    points = [(step, 0.0) for step in range(20000)]
    points[7777], points[12345], points[500] = (7777, 9.0), (12345, -9.0), (500, None)
    xs, ys = thinned(points)
    assert len(xs) <= content.POINTS + 2
    assert (xs[0], xs[-1]) == (0, 19999)
    assert dict(zip(xs, ys, strict=True))[7777] == 9.0
    assert dict(zip(xs, ys, strict=True))[12345] == -9.0
    assert thinned([(0, None), (1, 2.0)]) == ([0, 1], [None, 2.0])


def test_the_last_row_of_a_step_counts(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "time": 1, "train/loss": 1.0},
        {"step": 1, "time": 2, "train/loss": 2.0},
        {"step": 0, "time": 3, "train/loss": 3.0},
    ]
    rows.append({"step": 2, "time": 4, "train/loss": None, "nonfinite": {"train/loss": "nan"}})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert curves(tmp_path / "metrics.jsonl") == {
        "train/loss": {"axis": "train", "x": [0, 1, 2], "y": [3.0, 2.0, None], "points": 3}
    }


def test_sample_files_are_spread_over_the_run_by_number(tmp_path: Path) -> None:
    for name in [*(f"rollout_{n}" for n in range(101)), "eval_a_2", "eval_a_10", "eval_a_0"]:
        (tmp_path / f"{name}.jsonl").touch()
    assert [path.stem for path in sample_files(tmp_path, 3)] == [
        *("rollout_0", "rollout_50", "rollout_100"),
        *("eval_a_0", "eval_a_2", "eval_a_10"),
    ]
    assert [path.stem for path in sample_files(tmp_path, 1)] == ["rollout_100", "eval_a_10"]


def test_numbers_that_json_lacks_become_their_names() -> None:
    assert finite({"a": [float("nan"), (1.0, float("inf"))], 2: "x"}) == {"a": ["nan", [1.0, "inf"]], "2": "x"}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
