"""Kill any process of a run: it ends soon, with one error that names the process, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import psutil
import pytest

from miles_core.runtime.identity import free_port

pytestmark = pytest.mark.slow

END_SECONDS = 30


def wait_for(condition, seconds: float, what: str):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


def living(processes: list[psutil.Process]) -> list[str]:
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize(
    "victim",
    [
        *("trainer-1", "critic-0", "engine-0", "router-0", "rollout-0"),
        *("raylet", "gcs_server", "runtime_env_agent", "reaper", "driver"),
    ],
)
def test_killing_a_process_ends_the_run(victim: str, task, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    algo = "ppo" if victim.startswith("critic") else "grpo"
    trainers = 2 if victim in ("trainer-1", "router-0") else 1
    arguments = task.arguments(trainers=trainers, algo=algo, num_rollout=100000, run_dir=run_dir)
    command = [sys.executable, "-m", "miles_core.cli.main", "run", *arguments]
    errors = (tmp_path / "stderr").open("w+")
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
    try:
        wait_for(lambda: (run_dir / "metrics.jsonl").exists() or driver.poll() is not None, 180, "the first rollout")
        assert driver.poll() is None, Path(errors.name).read_text(encoding="utf-8")[-3000:]
        pids = json.loads((run_dir / "processes.json").read_text(encoding="utf-8"))
        # The reaper left the driver's session but is its child; everything else is below Ray's processes.
        everybody = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        assert pids["driver"] == driver.pid
        killed = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)
        code = driver.wait(END_SECONDS)
        wait_for(lambda: not living(everybody), END_SECONDS - (time.monotonic() - killed), f"processes to end: {living(everybody)}")
        text = Path(errors.name).read_text(encoding="utf-8")
        if victim == "driver":
            assert code == -signal.SIGKILL
        else:
            assert code == 1, text[-3000:]
            lines = [line for line in text.splitlines() if line.startswith("M4")]
            assert len(lines) == 1, text[-3000:]
            assert victim in lines[0]
            assert str(pids[victim]) in lines[0]
    finally:
        errors.close()
        for process in psutil.Process().children(recursive=True):
            if process.pid == driver.pid:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_takes_everything_down(number: signal.Signals, task, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    port = free_port("127.0.0.1")
    arguments = task.arguments(num_rollout=100000, run_dir=run_dir, rollout_engine_port=port)
    command = [sys.executable, "-m", "miles_core.cli.main", "run", *arguments]
    # Tests that were started in the background ignore Ctrl-C, and with them what they start.
    heeds = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    driver = subprocess.Popen(command, **output, start_new_session=True, preexec_fn=heeds)
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() or driver.poll() is not None, 180, "the first rollout")
    everybody = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).status == 200
    # Ctrl-C in a terminal reaches every process of the group; a service manager's SIGTERM the driver alone.
    (os.killpg if number is signal.SIGINT else os.kill)(driver.pid, number)
    out, _ = driver.communicate(timeout=END_SECONDS)
    assert driver.returncode == 130, out[-2000:]
    assert "Traceback" not in out
    wait_for(lambda: not living(everybody), 10, f"processes to end: {living(everybody)}")


def test_an_exception_in_a_process_is_shown_with_its_traceback(task, cluster, miles, tmp_path: Path) -> None:
    (tmp_path / "broken_reward.py").write_text("async def score(sample):\n    return {'no': 'number'}\n", encoding="utf-8")
    arguments = task.arguments(custom_rm_path="broken_reward.score", num_rollout=1, ray_address=cluster)
    done = miles("run", *arguments, "--run-dir", tmp_path / "run", code=1, PYTHONPATH=str(tmp_path))
    lines = [line for line in done.stderr.splitlines() if line.startswith("M4")]
    assert len(lines) == 1, done.stderr


def test_a_mistake_in_the_data_that_only_a_process_finds_is_the_users(task, cluster, miles, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    row = {"question": "<|im_start|>user\nsort 31524<|im_end|>\n", "answer": "12345"}
    prompts.write_text((json.dumps(row) + "\n") * 8, encoding="utf-8")
    arguments = task.arguments(prompt_data=prompts, num_rollout=1, ray_address=cluster)
    done = miles("run", *arguments, "--run-dir", tmp_path / "run", code=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("M")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"M312 {prompts}:1")
