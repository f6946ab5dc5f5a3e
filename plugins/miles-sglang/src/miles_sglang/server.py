"""A server as a subprocess: started, watched, its log kept, ended with everything that it started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from miles_core.errors import RunError
from miles_sglang import guard

OWNER = "miles-sglang"
TAIL_BYTES = 32768
TAIL_LINES = 40
POLL_SECONDS = 0.2
STOP_SECONDS = guard.GRACE + 10.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The servers are the run's own: a proxy of the environment has no business between."""


class ServerProcess:
    """One server.

    Args:
        name: for errors: ``SGLang server of engine 0``.
        command: program and arguments.
        environment: of the subprocess, whole.
        log: file that takes its output; None throws it away.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as files:
            output = files.enter_context(log.open("ab")) if log is not None else subprocess.DEVNULL
            self._process = subprocess.Popen(
                [sys.executable, str(Path(guard.__file__).resolve()), *self.command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                # A Ctrl-C in the terminal is the run's to handle.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the guard around the server."""
        return self._process.pid

    def ended(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.poll()

    def check(self) -> None:
        """Return while the server runs.

        Raises:
            RunError: M511, it has ended; with the tail of its log.
        """
        code = self.ended()
        if code is not None:
            raise self.error("M511", f"the {self.name} ended with exit code {code}", why=self.last_line())

    def wait(self, url: str, path: str, seconds: float) -> None:
        """Return when ``path`` answers with 200.

        Raises:
            RunError: M511, it has ended; M512, it does not answer within ``seconds``. Both with the tail of its log.
        """
        deadline = time.monotonic() + seconds
        while not answers(url + path, min(max(deadline - time.monotonic(), 0.1), 60.0)):
            self.check()
            if time.monotonic() >= deadline:
                fix = "see its log; raise --sglang-launch-timeout when it only needs more time"
                raise self.error("M512", f"the {self.name} was not ready within {seconds:g} s", why=self.last_line(), fix=fix)
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End it, and what it started; returns when that is done."""
        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        # A child that this process has forked meanwhile may hold the other end of that pipe, too.
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def tail(self) -> str:
        """The end of its log."""
        if self.log is None:
            return ""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-TAIL_LINES:])

    def last_line(self) -> str:
        """The last line of its log that says something, the last error of a traceback most of all."""
        lines = [line.strip() for line in self.tail().splitlines() if line.strip()]
        telling = [line for line in lines if line.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))]
        return (telling or lines or [""])[-1][:500]

    def error(self, code: str, what: str, *, why: str = "", fix: str = "") -> RunError:
        """An error that carries the tail of the log."""
        seen = f"see {self.log}" if self.log is not None else "give the engine a log folder"
        return RunError(code, what, owner=OWNER, why=why, fix=fix or seen, log=str(self.log), traceback=self.tail())


def answers(url: str, timeout: float) -> bool:
    """Whether a GET is answered with 200 within ``timeout`` seconds."""
    try:
        with _OPENER.open(url, timeout=timeout) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False
