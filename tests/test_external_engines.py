"""A run that generates on servers which were there before it: stand-ins for SGLang's, behind a stand-in for its router."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

STAND_INS = Path(__file__).parent.parent / "plugins" / "miles-sglang" / "tests"


def info(port: int) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5) as answer:
        return json.load(answer)


@pytest.fixture
def ports(task) -> Iterator[list[int]]:
    """Ports of two servers of the task's model."""
    found, servers = [], []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            found.append(probe.getsockname()[1])
        arguments = [f"--model-path={task.model}", "--host=127.0.0.1", f"--port={found[-1]}", "--tp-size=1"]
        servers.append(subprocess.Popen([sys.executable, str(STAND_INS / "fake_server.py"), *arguments], stdout=subprocess.DEVNULL))
    deadline = time.monotonic() + 60
    for port in found:
        while True:
            try:
                info(port)
                break
            except OSError:
                assert time.monotonic() < deadline
    yield found
    for server in servers:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_a_run_on_servers_that_run_already(task, cluster, miles, ports, tmp_path):
    done = miles(
        "run",
        *task.arguments(engine="sglang", colocate=False, num_rollout=2, logprob_diff_warn=100, logprob_diff_limit=100),
        *("--rollout-external", "--rollout-external-engine-addrs", *[f"127.0.0.1:{port}" for port in ports]),
        *("--sglang-router-launcher", shlex.join([sys.executable, str(STAND_INS / "fake_router.py")])),
        *("--sglang-server-concurrency", 4, "--ray-address", cluster, "--run-dir", tmp_path / "run"),
    )
    assert "--sglang-server-concurrency" not in done.stdout + done.stderr
    for port in ports:
        said = info(port)
        # Both took part and got every version, from the first one on, and are left serving.
        assert said["weight_version"] == "3"
        paths = [path for path, _, _ in said["calls"]]
        assert paths.count("/update_weight_version") == 3
        assert paths.count("/update_weights_from_disk") >= 3
        assert paths[-1] == "/continue_generation"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollout/response_len/mean"] for row in rows if "rollout/response_len/mean" in row] == [7.0, 7.0]
    assert (tmp_path / "run" / "logs" / "sglang-router.log").exists()
