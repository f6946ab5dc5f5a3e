"""The reaper ends what a killed driver left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

DRIVER = """
import subprocess, sys, time
from pathlib import Path
from miles_core.runtime.reaper import Reaper

folder = Path(sys.argv[1])
folder.mkdir()
(folder / "segment").write_bytes(b"x")
reaper = Reaper()
reaper.adopt_folder(folder)
sleeper = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=True)
while len(reaper.adopt_children()) < 2:
    time.sleep(0.05)
if sys.argv[2] == "dismiss":
    print("left", reaper.end_all(), flush=True)
    reaper.dismiss()
    sys.exit(0)
print(*[p.pid for p in reaper.adopt_children()], reaper.pid, flush=True)
time.sleep(600)
"""


def start(folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), mode], stdout=subprocess.PIPE, text=True)


def wait_until(condition, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_driver_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    driver = start(folder, "stay")
    assert driver.stdout is not None
    pids = [int(p) for p in driver.stdout.readline().split()]
    assert len(pids) == 3
    assert folder.exists()
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert wait_until(lambda: all(gone(pid) for pid in pids)), "processes outlived their driver"
    assert not folder.exists()


def test_a_dismissed_reaper_goes_and_leaves_folders_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    driver = start(folder, "dismiss")
    out, _ = driver.communicate(timeout=60)
    assert out.strip() == "left []"
    assert driver.returncode == 0
    assert folder.exists()
