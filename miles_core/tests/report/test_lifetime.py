"""How a run is known to live, and how it ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from miles_core.errors import RunError
from miles_core.report.lifetime import born, lifetime, read_sessions


def test_a_run_that_ends_well(tmp_path: Path) -> None:
    with lifetime(tmp_path, 7):
        (session,) = read_sessions(tmp_path)
        assert (session.pid, session.total, session.ended, session.state) == (os.getpid(), 7, None, "running")
    (session,) = read_sessions(tmp_path)
    assert (session.state, session.error) == ("finished", "")
    assert session.ended is not None
    assert session.ended >= session.started


@pytest.mark.parametrize(
    ("error", "state", "line"),
    [
        (RunError("M490", "no group", fix="look"), "failed", "M490 no group. Do: look"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (KeyboardInterrupt(), "interrupted", ""),
    ],
)
def test_a_run_that_ends_badly(tmp_path: Path, error: BaseException, state: str, line: str) -> None:
    with pytest.raises(type(error)), lifetime(tmp_path, 1):
        raise error
    (session,) = read_sessions(tmp_path)
    assert (session.state, session.error) == (state, line)


def test_a_killed_driver_is_seen_though_its_number_is_in_use_again(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from miles_core.report.lifetime import lifetime
with lifetime(Path({str(tmp_path)!r}), 3):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    (session,) = read_sessions(tmp_path)
    assert session.state == "killed"
    assert replace(session, pid=os.getpid()).state == "killed"
    assert replace(session, host="elsewhere").state == "on elsewhere"
    assert replace(session, pid=os.getpid(), born=born(os.getpid())).state == "running"


def test_a_resumed_run_keeps_its_earlier_sessions(tmp_path: Path) -> None:
    with pytest.raises(ValueError), lifetime(tmp_path, 3):
        raise ValueError
    with lifetime(tmp_path, 5):
        pass
    assert [(session.state, session.total) for session in read_sessions(tmp_path)] == [("failed", 3), ("finished", 5)]
    assert {session.host for session in read_sessions(tmp_path)} == {socket.gethostname()}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sessions": [{"pid": 1}]}'])
def test_a_broken_file_is_no_session(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="utf-8")
    assert read_sessions(tmp_path) == []
