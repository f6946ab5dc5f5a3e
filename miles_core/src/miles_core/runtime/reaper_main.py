"""The reaper process: waits for its driver's end of the pipe to close, then ends what the driver left behind.

Runs as a script with nothing of miles imported, so that it starts at once and survives whatever broke the driver.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

import psutil


def main() -> None:
    """Read adopted processes and folders line by line until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    processes: dict[int, float] = {}
    folders: list[str] = []
    for line in sys.stdin:
        verb, _, rest = line.rstrip("\n").partition(" ")
        if verb == "process":
            pid, _, created = rest.partition(" ")
            processes[int(pid)] = float(created)
        elif verb == "folder":
            folders.append(rest)
        elif verb == "done":
            return
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        alive = [pid for pid, created in processes.items() if is_same(pid, created)]
        if not alive:
            break
        for pid in alive:
            # Children that appeared after the last report belong to the run too.
            for child in children(pid):
                processes.setdefault(child.pid, child.create_time())
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def is_same(pid: int, created: float) -> bool:
    """Whether ``pid`` still is the process that was adopted, not a later one with its number."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(pid: int) -> list[psutil.Process]:
    """Direct and indirect children."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    main()
