"""A run whose rollouts an agent makes, by the example of docs/rollout-buffer.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "rollout-buffer.md"


@contextmanager
def buffer() -> Iterator[str]:
    command = [sys.executable, "-m", "miles_core.rollout.external.server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


@pytest.mark.slow
def test_an_agent_makes_the_rollouts(task, cluster, miles, metrics, tmp_path: Path) -> None:
    found = re.search(r"## An agent\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    agent = tmp_path / "agent.py"
    agent.write_text(found[1], encoding="utf-8")
    with buffer() as url, (tmp_path / "agent.log").open("w") as log:
        process = subprocess.Popen([sys.executable, str(agent), url], stdout=log, stderr=subprocess.STDOUT)
        try:
            done = miles(
                "run",
                *task.arguments(
                    engines=1,
                    num_rollout=2,
                    rollout_buffer_url=url,
                    custom_rm_path=None,
                    label_key=None,
                    apply_chat_template=None,
                    save=tmp_path / "states",
                    ray_address=cluster,
                    run_dir=tmp_path / "run",
                ),
                timeout=150,
            )
            assert process.wait(60) == 0, (tmp_path / "agent.log").read_text()
        finally:
            process.kill()
            process.wait()
        with urlopen(f"{url}/stats", timeout=10) as answer:
            stats = json.load(answer)
    assert "nobody read" not in done.stdout + done.stderr
    assert (stats["stored"], stats["invalid"], stats["ready_groups"]) == (64, 0, 0)
    logged = metrics(tmp_path / "run")
    assert [value for _, value in logged["rollout_buffer/groups"]] == [8, 8]
    assert [value for _, value in logged["rollout_buffer/invalid"]] == [0, 0]
    samples = [
        json.loads(line)
        for i in range(2)
        for line in (tmp_path / "run" / "samples" / f"rollout_{i}.jsonl").read_text("utf-8").splitlines()
    ]
    assert [sample["index"] for sample in samples] == list(range(64))
    # The agent posts what the engine made: the trainer finds the same log-probs for tokens of its own weights.
    assert logged["train/train_rollout_logprob_abs_diff"][0][1] < 1e-4
    state = json.loads(next((tmp_path / "states").glob("*/rollout.json")).read_text(encoding="utf-8"))
    assert state["external"]["used"] == [str(i) for i in range(16)]


@pytest.mark.slow
def test_no_buffer(task, cluster, miles, tmp_path: Path) -> None:
    with buffer() as gone:
        pass
    arguments = task.arguments(
        engines=1, num_rollout=1, rollout_buffer_url=gone, custom_rm_path=None, ray_address=cluster, run_dir=tmp_path / "run"
    )
    done = miles("run", *arguments, code=2, timeout=90)
    assert "M496 rollout buffer http://127.0.0.1" in done.stderr
