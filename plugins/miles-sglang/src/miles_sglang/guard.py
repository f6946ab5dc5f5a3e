"""Runs a command and ends it, with everything that it started, when the process that asked for it goes away.

``python guard.py COMMAND...``: standard input is a pipe whose other end the owner holds. At its end, and at SIGTERM, the command's
process group gets SIGTERM and, when it lives on, SIGKILL. Needs nothing beyond the standard library and may run by path.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


def main(command: list[str]) -> int:
    """Run ``command``; returns its exit code, 128 and up for a signal."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    wanted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: wanted.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_owner, args=(wanted,), daemon=True).start()
    threading.Thread(target=_watch_child, args=(child, wanted), daemon=True).start()
    wanted.wait()
    _signal(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    # What the command has started may outlive it.
    _signal(child.pid, signal.SIGKILL)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _watch_owner(wanted: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    wanted.set()


def _watch_child(child: subprocess.Popen[bytes], wanted: threading.Event) -> None:
    child.wait()
    wanted.set()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
